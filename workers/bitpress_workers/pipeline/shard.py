"""One device's part of a job: its slices of the activations, the block in hand, its rows of every linear.

A plain class: a fleet calls it in this process or in an actor. Nothing here knows of other shards,
but that there are `num_shards` of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear, concatenate
from bitpress.methods import LoRAPreprocessing, MethodConfig
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.methods import create
from bitpress_workers.methods.base import Agreement, Method, RowSolver, SolvedRows, Survey
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Tap
from bitpress_workers.models.skeleton import Skeleton, tap_inputs
from bitpress_workers.numerics.hessian import Gram, GramTree, reduce_tree
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.block_file import read_linears, tensors_sha256, write_block
from bitpress_workers.pipeline.block_training import (
    BlockTraining,
    Surveys,
    TrainedPart,
    TrainingState,
    begin,
    pass_reference,
)
from bitpress_workers.pipeline.evidence import Evidence, Part, TapData, TapFacts, tile_errors
from bitpress_workers.pipeline.memory import peak_resident_bytes, return_large_tensors
from bitpress_workers.pipeline.placement import rows_of
from bitpress_workers.pipeline.restoration import Restoration, save_checkpoint


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
            return_large_tensors()
        self._method = create(config.method)
        self.open(config.model_path, config.store_url)
        self._activations: dict[str, Activations] = {}
        self._block = nn.Module()
        self._block_index = -1
        self._taps: dict[str, Tap] = {}
        self._solvers: dict[str, RowSolver] = {}
        self._compressed: dict[str, CompressedLinear] = {}
        self._evidence: dict[str, Evidence] = {}
        self._training: BlockTraining
        self._restoration: Restoration

    def open(self, model_path: str, store_url: str) -> None:
        """Read this checkpoint and write into this store from now on."""
        self._checkpoint = Checkpoint.open(model_path)
        in_float32 = self._config.device == "cpu" or isinstance(self._method, BlockMethod)
        dtype = torch.float32 if in_float32 else self._checkpoint.config.dtype
        self._skeleton = Skeleton(self._checkpoint, self._device, dtype)
        self._store = ArtifactStore.from_url(store_url)

    # Activations: one named stream for calibration, two for evaluation.

    def start(self, stream: str, tokens_NS: Tensor, groups: Sequence[Sequence[range]]) -> None:
        """Embed this shard's sequences of `stream`; `groups[shard]` are its micro-batches."""
        self._activations[stream] = Activations(self._skeleton, tokens_NS, groups[self._index])

    def stop(self, stream: str) -> None:
        del self._activations[stream]

    def advance(self, stream: str) -> None:
        """Run the block in hand over a stream's activations. Raises NumericalError when one is not finite."""
        self._require_finite(self._activations[stream].advance(self._block, self._block_index))

    def score(self, stream: str) -> list[float]:
        """Mean negative log-likelihood of each of this shard's windows, in order."""
        return self._activations[stream].score()

    # The block in hand.

    def load(self, block_index: int) -> None:
        """Take a dense block from the checkpoint."""
        self._block = nn.Module()  # let go of the last block before the next one is read
        self._block_index = block_index
        self._compressed, self._evidence = {}, {}
        self._taps = {tap.name: tap for tap in self._skeleton.taps(block_index)}
        self._block = self._skeleton.load_block(block_index)

    def fingerprint(self) -> str:
        """Return the sha256 of the block in hand, as it was loaded."""
        return tensors_sha256(self._block.state_dict())

    def outer_fingerprint(self) -> str:
        """Return the sha256 of the weights outside the blocks: the first block's input depends on them."""
        return tensors_sha256(self._skeleton.outer_tensors())

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
            for tap in wanted:  # no token of a slice may have come to an expert
                trees[tap.name].add(slice_index, grams.get(tap.name) or self._silent(tap))
        return {tap: tree.nodes for tap, tree in trees.items()}

    def factor(self, tap: str, *collected: Mapping[str, Mapping[tuple[int, int], Gram]]) -> TapData:
        """Merge all shards' Grams of a tap and factorize the Hessian."""
        nodes = {key: gram for part in collected for key, gram in part[tap].items()}
        gram = reduce_tree(nodes, len(self._config.slices))
        if not gram.num_tokens:  # an expert that no token came to: no input matters more than another
            gram = Gram(torch.eye(len(gram.xtx_II), device=gram.xtx_II.device), num_sequences=1, num_tokens=0)
        name = f"{self._skeleton.block_name(self._block_index)}, tap {tap}"
        if not bool(torch.isfinite(gram.xtx_II).all()):
            raise NumericalError(f"{name}: an activation is not finite, or too large for float32 statistics")
        try:
            return TapData(gram, self._solving_method().factor(gram))
        except NumericalError as error:
            raise NumericalError(f"{name}: {error.message}") from error

    def facts(self, data: TapData) -> TapFacts:
        return TapFacts(
            damping_used=data.factor.damping_used,
            num_dead=data.factor.num_dead,
            num_columns=data.factor.num_columns,
            num_tokens=data.gram.num_tokens,
        )

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
            name: self._solving_method().agree(
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

    # A block in training: pass_reference, begin, prepare, walk (many times), finish.

    def pass_reference(self) -> Surveys:
        """Pass the dense model's activations through the dense block; returns what the method saw of them."""
        taps, stream = list(self._taps.values()), self._activations["reference"]
        surveys, finite = pass_reference(self._training_method(), self._block, self._block_index, taps, stream)
        self._require_finite(finite)
        return surveys

    def begin_training(self, *surveys: Surveys) -> TrainingState:
        """Start from all shards' surveys."""
        weights = {name: self._weight(name) for tap in self._taps.values() for name in tap.linears}
        return begin(self._training_method(), weights, list(self._taps.values()), surveys)

    def prepare_training(self, state: TrainingState) -> None:
        streams = self._activations["reference"], self._activations["calibration"]
        name = self._skeleton.block_name(self._block_index)
        self._training = BlockTraining(self._training_method(), self._block, self._block_index, name, state, streams)

    def walk(self, state: TrainingState) -> TrainingState:
        """Take one step for each of this shard's sequences."""
        return self._training.walk(state)

    def training_losses(self, state: TrainingState) -> list[float]:
        return state.losses

    def finish_training(self, state: TrainingState) -> dict[str, TrainedPart]:
        """Put the trained linears into the block in hand; returns what the report says of them."""
        compressed = self._training.compress(state)
        parts = self._training.parts(compressed, list(self._taps.values()))
        del self._training
        for name, linear in compressed.items():
            self._install(name, linear)
        return parts

    # The whole model, with an adapter in training.

    def begin_restoring(self, blocks: Sequence[tuple[str, str]], config: LoRAPreprocessing) -> None:
        """Take the whole model, its linears as they lie in the store's blocks, given as (key, sha256)."""
        self._block = nn.Module()
        linears: dict[str, CompressedLinear] = {}
        for key, sha256 in blocks:
            linears |= read_linears(self._store.get_bytes(key), sha256, key)
        self._restoration = Restoration(self._skeleton.assemble(), linears, config, self._device)

    def restore(self, first_step: int, documents: Sequence[Tensor]) -> float:
        return self._restoration.train(first_step, documents)

    def finish_restoring(self, directory: str) -> None:
        """Write the model, adapters merged, as a checkpoint; this shard has to be opened anew then."""
        skeleton = self._skeleton
        blocks = [skeleton.block_tensor_names(index) for index in range(skeleton.num_blocks)]
        names = [skeleton.outer_tensor_names(), *blocks]
        save_checkpoint(self._checkpoint, names, self._restoration.merge(), Path(directory))
        del self._restoration

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
        prefix = self._skeleton.block_name(self._block_index)
        for name, linear in read_linears(self._store.get_bytes(key), sha256, key).items():
            self._install(name.removeprefix(prefix + "."), linear)

    def peak_bytes(self) -> tuple[int, int]:
        """Largest resident memory of this process, largest memory taken on its accelerator."""
        device = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return peak_resident_bytes(), device

    def _put(self, key: str, tensors: dict[str, Tensor], headers: dict[str, dict[str, Any]]) -> Published:
        data = write_block(tensors, headers)
        self._store.put_bytes(key, data)
        return Published(hashlib.sha256(data).hexdigest(), len(data), tuple(sorted(tensors)), headers)

    def _install(self, name: str, compressed: CompressedLinear) -> None:
        self._compressed[name] = compressed
        self._weight(name).copy_(compressed.dequantize())

    def _part(self, name: str, rows: range, solved: SolvedRows, data: TapData) -> Part:
        weight_RI = self._weight(name)[rows.start : rows.stop]
        return Part(solved, tuple(tile_errors(weight_RI, solved.compressed, data.gram, self._config.row_tile)))

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
            self._solvers[tap] = self._solving_method().begin(weights, data.factor, self._config.row_tile)
        return self._solvers[tap]

    def _require_finite(self, finite: bool) -> None:
        if not finite:
            raise NumericalError(f"{self._skeleton.block_name(self._block_index)}: an activation is not finite")

    def _solving_method(self) -> Method:
        assert not isinstance(self._method, BlockMethod)
        return self._method

    def _training_method(self) -> BlockMethod:
        assert isinstance(self._method, BlockMethod)
        return self._method

    def _rows(self, tap: str) -> dict[str, range]:
        num_rows = {name: len(self._weight(name)) for name in self._taps[tap].linears}
        return rows_of(num_rows, self._config.row_tile, self._num_shards, self._index)

    def _silent(self, tap: Tap) -> Gram:
        return Gram.zeros(self._weight(tap.linears[0]).shape[1], self._device)

    def _weight(self, name: str) -> Tensor:
        return self._block.get_parameter(f"{name}.weight").data

    def _full_name(self, name: str) -> str:
        return f"{self._skeleton.block_name(self._block_index)}.{name}"
