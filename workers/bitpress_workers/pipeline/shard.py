"""One device's part of a job: its slices of the activations, the block in hand, its rows of every linear.

A plain class: a fleet calls it in this process or in an actor. Nothing here knows of other shards,
but that there are `num_shards` of them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bitpress.errors import ArtifactError, NumericalError
from bitpress.formats import CompressedLinear, concatenate, from_tensors
from bitpress.methods import MethodConfig
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.methods import create
from bitpress_workers.methods.base import Agreement, RowSolver, SolvedRows, Survey
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton, tap_inputs
from bitpress_workers.numerics.hessian import Factor, Gram, GramTree, reduce_tree
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.placement import rows_of, tiles_of
from bitpress_workers.pipeline.plan import peak_resident_bytes


@dataclass(frozen=True)
class ShardConfig:
    """What every shard of a job is built from; crosses process borders."""

    model_path: str
    method: MethodConfig
    device: str
    store_url: str
    slices: tuple[range, ...]
    row_tile: int


@dataclass(frozen=True)
class TapData:
    """What solving a tap's linears needs: the Hessian for the evidence, its factor for the solve."""

    gram: Gram
    factor: Factor


@dataclass(frozen=True)
class TapFacts:
    """What the report says of a tap."""

    damping_used: float | None
    num_dead: int
    num_tokens: int


@dataclass(frozen=True)
class Part:
    """One shard's rows of a solved linear, with the squared output error and squared output of each row tile."""

    solved: SolvedRows
    errors: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Evidence:
    """What the report says of one linear."""

    shape: tuple[int, int]
    stored_bits: int
    relative_error: float
    outlier_fraction: float
    num_constant_groups: int


@dataclass(frozen=True)
class Published:
    """A file that a shard put into the object store."""

    sha256: str
    bytes: int
    tensors: tuple[str, ...]
    headers: dict[str, dict[str, Any]]


class Shard:
    def __init__(self, config: ShardConfig, index: int, num_shards: int, device_index: int | None = None) -> None:
        """Build shard `index` of `num_shards`, on accelerator `device_index` (its own index when not given)."""
        self._config, self._index, self._num_shards = config, index, num_shards
        number = index if device_index is None else device_index
        self._device = torch.device(config.device, number) if config.device == "cuda" else torch.device(config.device)
        if config.device == "cpu":
            torch.set_num_threads(1)  # a CPU device is one core; a GEMM's bits may depend on its threads
        self._method = create(config.method)
        self._checkpoint = Checkpoint.open(config.model_path)
        dtype = torch.float32 if config.device == "cpu" else self._checkpoint.config.dtype
        self._skeleton = Skeleton(self._checkpoint, self._device, dtype)
        self._store = ArtifactStore.from_url(config.store_url)
        self._taps = {tap.name: tap for tap in self._skeleton.family.taps}
        self._activations: dict[str, Activations] = {}
        self._block = nn.Module()
        self._block_index = -1
        self._solvers: dict[str, RowSolver] = {}
        self._compressed: dict[str, CompressedLinear] = {}
        self._evidence: dict[str, Evidence] = {}

    # Activations: one named stream for calibration, two for evaluation.

    def start(self, stream: str, tokens_NS: Tensor, groups: Sequence[Sequence[range]]) -> None:
        """Embed this shard's sequences of `stream`; `groups[shard]` are its micro-batches."""
        self._activations[stream] = Activations(self._skeleton, tokens_NS, groups[self._index])

    def stop(self, stream: str) -> None:
        del self._activations[stream]

    def advance(self, stream: str) -> None:
        """Run the block in hand over a stream's activations. Raises NumericalError when one is not finite."""
        if not self._activations[stream].advance(self._block, self._block_index):
            raise NumericalError(f"{self._skeleton.block_name(self._block_index)}: an activation is not finite")

    def score(self, stream: str) -> list[float]:
        """Mean negative log-likelihood of each of this shard's windows, in order."""
        return self._activations[stream].score()

    # The block in hand.

    def load(self, block_index: int) -> None:
        """Take a dense block from the checkpoint."""
        self._block = nn.Module()  # let go of the last block before the next one is read
        self._block_index = block_index
        self._compressed, self._evidence = {}, {}
        self._block = self._skeleton.load_block(block_index)

    def fingerprint(self) -> str:
        """Return the sha256 of the block in hand, as it was loaded."""
        return _sha256(self._block.state_dict())

    def outer_fingerprint(self) -> str:
        """Return the sha256 of the weights outside the blocks: the first block's input depends on them."""
        return _sha256(self._skeleton.outer_tensors())

    def collect(self, taps: Sequence[str]) -> dict[str, dict[tuple[int, int], Gram]]:
        """Run the block over this shard's slices; returns, by tap, Grams of the maximal subtrees of slices."""
        trees = {tap: GramTree() for tap in taps}
        wanted = [self._taps[tap] for tap in taps]
        activations = self._activations["calibration"]
        for slice_index, batches in activations.by_slice(self._config.slices).items():
            grams: dict[str, Gram] = {}
            for batch in batches:
                size = activations.size(batch)

                def accumulate(tap: str, x_TI: Tensor, grams: dict[str, Gram] = grams, size: int = size) -> None:
                    gram = grams.setdefault(tap, Gram.zeros(x_TI.shape[-1], x_TI.device))
                    gram.accumulate(x_TI, size)

                with tap_inputs(self._block, wanted, accumulate):
                    activations.forward(self._block, self._block_index, batch)
            for tap, gram in grams.items():
                trees[tap].add(slice_index, gram)
        return {tap: tree.nodes for tap, tree in trees.items()}

    def factor(self, tap: str, *collected: Mapping[str, Mapping[tuple[int, int], Gram]]) -> TapData:
        """Merge all shards' Grams of a tap and factorize the Hessian."""
        nodes = {key: gram for part in collected for key, gram in part[tap].items()}
        gram = reduce_tree(nodes, len(self._config.slices))
        name = f"{self._skeleton.block_name(self._block_index)}, tap {tap}"
        if not bool(torch.isfinite(gram.xtx_II).all()):
            raise NumericalError(f"{name}: an activation is not finite, or too large for float32 statistics")
        try:
            return TapData(gram, self._method.factor(gram))
        except NumericalError as error:
            raise NumericalError(f"{name}: {error.message}") from error

    def facts(self, data: TapData) -> TapFacts:
        return TapFacts(data.factor.damping_used, data.factor.num_dead, data.gram.num_tokens)

    # A tap's linears: survey, agree, solve, install.

    def survey(self, tap: str, data: TapData, agreed: Mapping[str, Agreement] | None) -> dict[str, list[Survey]]:
        """Survey this shard's rows, linear by linear."""
        rows = self._rows(tap)
        if not rows:
            return {}
        surveys = self._solver(tap, data).survey(None if agreed is None else [agreed[name] for name in rows])
        return {name: list(found) for name, found in zip(rows, surveys, strict=True)}

    def agree(
        self, tap: str, agreed: Mapping[str, Agreement] | None, *surveys: Mapping[str, Sequence[Survey]]
    ) -> dict[str, Agreement]:
        """Merge the surveys of all shards, linear by linear."""
        return {
            name: self._method.agree(
                [survey for part in surveys for survey in part.get(name, ())], agreed and agreed[name]
            )
            for name in self._taps[tap].linears
        }

    def solve(self, tap: str, data: TapData, agreed: Mapping[str, Agreement] | None) -> dict[str, Part]:
        """Solve this shard's rows of a tap's linears."""
        rows = self._rows(tap)
        if not rows:
            return {}
        solver = self._solver(tap, data)
        del self._solvers[tap]
        try:
            solved = solver.solve(None if agreed is None else [agreed[name] for name in rows])
        except NumericalError as error:
            names = ", ".join(self._full_name(name) for name in rows)
            raise NumericalError(f"{names}: {error.message}") from error
        return {name: self._part(name, rows[name], part, data) for name, part in zip(rows, solved, strict=True)}

    def install(self, tap: str, *parts: Mapping[str, Part]) -> None:
        """Put a tap's solved linears, all shards' rows of them, into the block in hand."""
        for name in self._taps[tap].linears:
            self._install_parts(name, [part[name] for part in parts if name in part])

    def evidence(self, name: str) -> Evidence:
        return self._evidence[name]

    # The published block.

    def publish(self, key: str) -> Published:
        """Write the compressed block into the object store: one safetensors file, ready to load."""
        prefix = self._skeleton.block_name(self._block_index)
        headers = {f"{prefix}.{name}": linear.header() for name, linear in self._compressed.items()}
        tensors = {
            f"{prefix}.{name}.{suffix}": tensor.contiguous().cpu()
            for name, linear in self._compressed.items()
            for suffix, tensor in linear.tensors().items()
        }
        names = self._skeleton.block_tensor_names(self._block_index)
        rest = {ours: theirs for ours, theirs in names.items() if ours.removesuffix(".weight") not in headers}
        stored = self._checkpoint.read(rest.values())
        tensors |= {ours: stored[theirs] for ours, theirs in rest.items()}
        return self._put(key, tensors, headers)

    def publish_outer(self, key: str) -> Published:
        """Write what is outside the blocks, as the checkpoint has it."""
        return self._put(key, self._skeleton.outer_tensors(), {})

    def install_published(self, key: str, sha256: str) -> None:
        """Put a published block's linears into the block in hand. Raises ArtifactError when it has changed."""
        data = self._store.get_bytes(key)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactError(f"{key}: its content has changed since it was published")
        tensors = safetensors.torch.load(data)
        prefix = self._skeleton.block_name(self._block_index)
        for full_name, header in _headers(data).items():
            suffixes = {n.removeprefix(full_name + "."): t for n, t in tensors.items() if n.startswith(full_name + ".")}
            suffixes.pop("bias", None)
            self._install(full_name.removeprefix(prefix + "."), from_tensors(header, suffixes))

    def peak_bytes(self) -> tuple[int, int]:
        """Largest resident memory of this process, largest memory taken on its accelerator."""
        device = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return peak_resident_bytes(), device

    def _put(self, key: str, tensors: dict[str, Tensor], headers: dict[str, dict[str, Any]]) -> Published:
        # One metadata key: safetensors writes several in no fixed order, and equal blocks must be equal bytes.
        data = safetensors.torch.save(tensors, metadata={"bitpress": json.dumps(headers, sort_keys=True)})
        self._store.put_bytes(key, data)
        return Published(hashlib.sha256(data).hexdigest(), len(data), tuple(sorted(tensors)), headers)

    def _install(self, name: str, compressed: CompressedLinear) -> None:
        self._compressed[name] = compressed
        self._weight(name).copy_(compressed.dequantize())

    def _part(self, name: str, rows: range, solved: SolvedRows, data: TapData) -> Part:
        weight_RI = self._weight(name)[rows.start : rows.stop]
        return Part(solved, tuple(_tile_errors(weight_RI, solved.compressed, data.gram, self._config.row_tile)))

    def _install_parts(self, name: str, parts: Sequence[Part]) -> None:
        compressed = concatenate([part.solved.compressed for part in parts])
        errors = [pair for part in parts for pair in part.errors]
        error, reference = sum(pair[0] for pair in errors), sum(pair[1] for pair in errors)
        self._evidence[name] = Evidence(
            shape=compressed.shape,
            stored_bits=compressed.stored_bits(),
            relative_error=error / reference if reference else 0.0,
            outlier_fraction=compressed.outlier_fraction,
            num_constant_groups=sum(part.solved.num_constant_groups for part in parts),
        )
        self._install(name, compressed)

    def _solver(self, tap: str, data: TapData) -> RowSolver:
        if tap not in self._solvers:
            weights = [
                # A fresh tensor, so that tiles lie alike in memory on every fleet.
                self._weight(name)[rows.start : rows.stop].to(torch.float32, copy=True)
                for name, rows in self._rows(tap).items()
            ]
            self._solvers[tap] = self._method.begin(weights, data.factor, self._config.row_tile)
        return self._solvers[tap]

    def _rows(self, tap: str) -> dict[str, range]:
        num_rows = {name: len(self._weight(name)) for name in self._taps[tap].linears}
        return rows_of(num_rows, self._config.row_tile, self._num_shards, self._index)

    def _weight(self, name: str) -> Tensor:
        return self._block.get_parameter(f"{name}.weight").data

    def _full_name(self, name: str) -> str:
        return f"{self._skeleton.block_name(self._block_index)}.{name}"


def _tile_errors(
    weight_RI: Tensor, compressed: CompressedLinear, gram: Gram, row_tile: int
) -> list[tuple[float, float]]:
    """Squared output error and squared output, tr(D G D') and tr(W G W'), of each tile of rows, G = X'X."""
    weight_RI = weight_RI.float()
    difference_RI = weight_RI - compressed.dequantize().to(weight_RI.device)
    pairs = []
    for tile in tiles_of(range(len(weight_RI)), row_tile):
        energies = [_energy(rows_RI[tile.start : tile.stop].clone(), gram) for rows_RI in (difference_RI, weight_RI)]
        pairs.append((energies[0], energies[1]))
    return pairs


def _energy(rows_RI: Tensor, gram: Gram) -> float:
    return float(((rows_RI @ gram.xtx_II) * rows_RI).double().sum())


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _headers(data: bytes) -> dict[str, dict[str, Any]]:
    """The formats of a block file's linears, from its safetensors metadata."""
    length = int.from_bytes(data[:8], "little")
    headers: dict[str, dict[str, Any]] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["bitpress"])
    return headers
