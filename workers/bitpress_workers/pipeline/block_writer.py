"""Writing a compressed block into the object store: at once, or while the shards pass the block on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from bitpress.formats import CompressedLinear, Header
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton
from bitpress_workers.pipeline.block_file import Published, pack_block, put_block, store_block

Linears = Mapping[str, CompressedLinear]


class BlockWriter:
    """Writes blocks of one model, one after the other: a safetensors file each, ready to load."""

    def __init__(self, store: ArtifactStore, checkpoint: Checkpoint, skeleton: Skeleton) -> None:
        self._store, self._checkpoint, self._skeleton = store, checkpoint, skeleton
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None]

    def put(self, index: int, key: str, linears: Linears) -> Published:
        """Write block `index` with these linears, named as within it. Raises StoreError."""
        return put_block(self._store, key, *self._contents(index, linears))

    def begin(self, index: int, key: str, linears: Linears) -> Published:
        """Pack block `index` and begin to write it; it is there when `finish` has returned."""
        published, data = pack_block(*self._contents(index, linears))
        self._writing = self._thread.submit(store_block, self._store, key, data)
        return published

    def finish(self) -> None:
        """Wait until the block is written. Raises StoreError."""
        self._writing.result()

    def _contents(self, index: int, linears: Linears) -> tuple[dict[str, Tensor], dict[str, Header]]:
        """All tensors of the file, and the headers of its compressed linears, by full name."""
        prefix = self._skeleton.block_name(index)
        headers = {f"{prefix}.{name}": linear.header() for name, linear in linears.items()}
        tensors = {
            f"{prefix}.{name}.{suffix}": tensor.contiguous().cpu()
            for name, linear in linears.items()
            for suffix, tensor in linear.tensors().items()
        }
        names = self._skeleton.block_tensor_names(index)
        rest = {ours: theirs for ours, theirs in names.items() if ours.removesuffix(".weight") not in headers}
        stored = self._checkpoint.read(rest.values())
        return tensors | {ours: stored[theirs] for ours, theirs in rest.items()}, headers
