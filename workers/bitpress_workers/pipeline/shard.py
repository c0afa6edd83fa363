"""One device's part of a job: its slices of the activations, the block in hand, its rows of every linear.

A plain class: a fleet calls it in this process or in an actor. What it knows of the other shards is
its `Group`; methods in which they exchange are called on all of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitpress.artifacts import ProcessCost
from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear
from bitpress.jobs import ModelSource
from bitpress.methods import LoRAPreprocessing, MethodConfig
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.methods import create
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Tap
from bitpress_workers.models.skeleton import Skeleton
from bitpress_workers.numerics import kernels
from bitpress_workers.pipeline.accounts import cost
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.block_file import Published, chain_link, put_block, read_linears, tensors_sha256
from bitpress_workers.pipeline.block_training import (
    BlockTraining,
    Surveys,
    TrainedPart,
    TrainingState,
    begin,
    pass_reference,
)
from bitpress_workers.pipeline.block_writer import BlockWriter
from bitpress_workers.pipeline.evidence import Evidence, TapFacts
from bitpress_workers.pipeline.exchange import Group
from bitpress_workers.pipeline.lone_block import LoneBlock, LoneBlocks, SolvedTap
from bitpress_workers.pipeline.memory import pinnable_bytes, return_large_tensors
from bitpress_workers.pipeline.restoration import Restoration, save_checkpoint
from bitpress_workers.pipeline.row_solving import RowSolving

RANGE = "range"  # the stream of a shard that calibrates a range of blocks alone


def stream_name(stream: str, member: int) -> str:
    """A member's own stream of activations."""
    return f"{stream} {member}"


@dataclass(frozen=True)
class ShardMethod:
    """A member's method, with the rows of its tiles."""

    config: MethodConfig
    row_tile: int


@dataclass(frozen=True)
class ShardConfig:
    """What every shard of a run is built from; crosses process borders. methods: by member.

    thrifty: take less memory, for the same bits: keep activations on the host, read no block ahead,
    make one Hessian at a time.
    """

    model: ModelSource
    methods: Mapping[int, ShardMethod]
    device: str
    store_url: str
    slices: tuple[range, ...]
    thrifty: bool = False


def device_of(kind: str, number: int) -> torch.device:
    """Device `number` of a kind, as this process counts them; CPU cores have no numbers."""
    return torch.device(kind, number) if kind == "cuda" else torch.device(kind)


class Shard:
    def __init__(self, config: ShardConfig, group: Group) -> None:
        """Build shard `group.rank` on the group's device."""
        self._config, self._group, self._device = config, group, group.device
        if config.device == "cpu":
            torch.set_num_threads(1)  # a CPU device is one core; a GEMM's bits may depend on its threads
            return_large_tensors()
        self._methods = {member: create(method.config) for member, method in config.methods.items()}
        self._member = next(iter(self._methods))
        if any(not isinstance(method, BlockMethod) and method.factoring for method in self._methods.values()):
            kernels.load(self._device)  # takes a second, which is no block's
        self._opened: list[tuple[Checkpoint, ArtifactStore]] = []
        self.open(config.model)
        self._activations: dict[str, Activations] = {}
        self._offloaded = config.thrifty
        self._block = nn.Module()
        self._block_index = -1
        self._taps: dict[str, Tap] = {}
        self._dense: dict[str, Tensor] = {}
        self._compressed: dict[str, CompressedLinear] = {}
        self._solving: RowSolving | None = None
        self._surveys: Surveys
        self._state: TrainingState
        self._training: BlockTraining
        self._chains: dict[int, str] = {}
        self._restoration: Restoration

    def open(self, model: ModelSource) -> None:
        """Read this checkpoint from now on."""
        self._checkpoint = Checkpoint.open(model.uri, model.revision)
        in_float32 = self._config.device == "cpu" or isinstance(self._methods[self._member], BlockMethod)
        dtype = torch.float32 if in_float32 else self._checkpoint.config.dtype
        self._skeleton = Skeleton(self._checkpoint, self._device, dtype)
        self._store = ArtifactStore.from_url(self._config.store_url)
        self._writer = BlockWriter(self._store, self._checkpoint, self._skeleton)
        self._opened.append((self._checkpoint, self._store))

    def take_up(self, member: int) -> None:
        """Work for this member from now on, on the block in hand as it was loaded."""
        self._member, self._compressed, self._solving = member, {}, None
        if self._dense:
            for name, weight_OI in self._dense.items():
                self._weight(name).copy_(weight_OI)
        elif len(self._methods) > 1:
            self._dense = {name: self._weight(name).clone() for tap in self._taps.values() for name in tap.linears}

    # Activations: named streams; those of a calibration are the members' own.

    def offload(self) -> None:
        """Keep all activations to come in host memory."""
        self._offloaded = True

    def start(
        self, stream: str, tokens_NS: Tensor, groups: Sequence[Sequence[range]], lengths: Sequence[int] | None = None
    ) -> None:
        """Embed this shard's sequences of `stream`; `groups[shard]` are its micro-batches; lengths: if padded."""
        mine = groups[self._group.rank]
        self._activations[stream] = Activations(self._skeleton, tokens_NS, mine, self._offloaded, lengths=lengths)

    def stop(self, stream: str) -> None:
        del self._activations[stream]

    def advance(self, stream: str) -> None:
        """Run the block in hand over a stream's activations. Raises NumericalError when one is not finite."""
        self._require_finite(self._activations[stream].advance(self._block, self._block_index))

    def measure(self, measure: Callable[..., list[Any]], streams: Sequence[str], *args: Any) -> list[Any]:
        """What a function of `scoring` finds on streams, by micro-batch or by sequence, in order."""
        return measure(*(self._activations[stream] for stream in streams), *args)

    # The block in hand.

    def load(self, block_index: int) -> None:
        """Take a dense block from the checkpoint, or what was read of it ahead."""
        self._block, self._solving = nn.Module(), None  # let go of the last block first
        self._compressed, self._dense = {}, {}
        self._block_index = block_index
        self._taps = {tap.name: tap for tap in self._skeleton.taps(block_index)}
        self._block = self._skeleton.load_block(block_index)

    def prefetch(self) -> None:
        """Start reading the block after the one in hand; called when what takes most memory is over."""
        if self._block_index + 1 < self._skeleton.num_blocks and not self._config.thrifty:
            pinnable = pinnable_bytes() if self._device.type == "cuda" else 0
            self._skeleton.prefetch_block(self._block_index + 1, pinnable)

    def fingerprint(self) -> str:
        """Return the sha256 of the block in hand, as it was loaded."""
        return tensors_sha256(self._block.state_dict())

    def outer_fingerprint(self) -> str:
        """Return the sha256 of the weights outside the blocks: the first block's input depends on them."""
        return tensors_sha256(self._skeleton.outer_tensors())

    # A block whose taps are solved: begin, then factorize some taps, solve these, until all are.

    def begin_solving(self) -> None:
        self._solving = RowSolving(
            self._row_method(self._member),
            self._group,
            self._block,
            self._block_index,
            self._skeleton.block_name(self._block_index),
            list(self._taps.values()),
            slices=self._config.slices,
            row_tile=self._config.methods[self._member].row_tile,
            one_by_one=self._config.thrifty,
        )

    def factorize(self, taps: Sequence[str]) -> dict[str, TapFacts]:
        """Make and factorize Hessians from the same forwards, with all shards; returns the facts of this one's taps."""
        assert self._solving is not None
        return self._solving.factorize(taps, self._stream("calibration"))

    def solve(self, tap: str) -> list[Evidence]:
        """Solve a factorized tap with all shards; its linears, in their order, are in the block in hand then."""
        assert self._solving is not None
        solved = self._solving.solve(tap)
        for name, (compressed, _) in solved.items():
            self._install(name, compressed)
        return [evidence for _, evidence in solved.values()]

    # Independent blocks, a range of them: begin; look ahead and hand over; then compress one by one.

    def begin_range(self, first: int, tokens_NS: Tensor, batches: Sequence[range]) -> None:
        """Take all sequences: embedded, or from the shard before this one, with the hash chain over its blocks."""
        peer, states = self._group.rank - 1, None
        self._chains = {first - 1: ""}
        if first:
            self._chains = {first - 1: self._group.receive(peer)}
            states = (self._group.receive(peer) for _ in batches)
        self._activations[RANGE] = Activations(self._skeleton, tokens_NS, batches, self._offloaded, states)

    def hand_over(self, blocks: range) -> None:
        """Pass this shard's dense blocks for the shard after it, which begins with what comes out of them."""
        ahead = self._activations["ahead"] = self._activations[RANGE].branch()
        for index in blocks:
            self.load(index)
            self._link(index)
            self.prefetch()
            self.advance("ahead")
        peer = self._group.rank + 1
        self._group.send(self._chains[blocks[-1]], peer)
        for batch in range(len(ahead)):
            self._group.send(ahead.hidden(batch), peer)
        self.stop("ahead")

    def compress_alone(self, index: int, keys: Mapping[int, str]) -> LoneBlocks:
        """Compress a block for each member that has a key, and publish it there; pass it densely."""
        started = time.monotonic()
        self.load(index)
        chain, stream = self._link(index), self._activations[RANGE]

        def step(batch: int) -> None:
            self._require_finite(stream.step(self._block, index, batch))

        if not keys:
            self.prefetch()
            self.advance(RANGE)
            return LoneBlocks(chain, {})
        lone = LoneBlock(
            {member: (self._row_method(member), self._config.methods[member].row_tile) for member in keys},
            self._block,
            index,
            self._skeleton.block_name(index),
            list(self._taps.values()),
            self._config.slices,
            self._device,
        )
        found: dict[int, tuple[Published, Mapping[str, SolvedTap], float] | NumericalError] = {}
        lone.gather(stream, step)
        self.prefetch()
        for member, result in lone.solve().items():
            if isinstance(result, NumericalError):
                found[member] = result
            else:
                published = self._writer.put(index, keys[member], result.linears)
                found[member] = (published, result.taps, time.monotonic() - started)
        return LoneBlocks(chain, found)

    def _link(self, index: int) -> str:
        """The hash chain over all dense blocks up to the one in hand, number `index`."""
        if index not in self._chains:
            self._chains[index] = chain_link(self._chains[index - 1], self.fingerprint())
        return self._chains[index]

    # A block in training: pass_reference, begin, train (many times), finish.

    def pass_reference(self) -> None:
        """Pass the dense model's activations through the dense block; what the method saw of them is kept."""
        taps, stream = list(self._taps.values()), self._stream("reference")
        self._surveys, finite = pass_reference(self._training_method(), self._block, self._block_index, taps, stream)
        self._require_finite(finite)

    def begin_training(self) -> None:
        """Start from all shards' surveys."""
        taps, surveys = list(self._taps.values()), self._group.gather(self._surveys, 0)
        self._surveys = {}
        weights = {name: self._weight(name) for tap in taps for name in tap.linears}
        begun = begin(self._training_method(), weights, taps, surveys) if surveys else None
        self._state = self._group.broadcast(begun, 0)
        streams = self._stream("reference"), self._stream("calibration")
        name = self._skeleton.block_name(self._block_index)
        self._training = BlockTraining(
            self._training_method(), self._block, self._block_index, name, self._state, streams
        )

    def train(self) -> None:
        """Take one step for each of all shards' sequences, in their order: the state goes round, back to the first."""
        rank, size = self._group.rank, self._group.size
        if rank:
            self._state = self._group.receive(rank - 1)
        self._state = self._training.walk(self._state)
        if size > 1:
            self._group.send(self._state, (rank + 1) % size)
        if size > 1 and not rank:
            self._state = self._group.receive(size - 1)

    def finish_training(self) -> tuple[dict[str, TrainedPart], list[float]]:
        """Put the trained linears into the block in hand; returns what the report says of them, and all losses."""
        state: TrainingState = self._group.broadcast(self._state, 0)
        compressed = self._training.compress(state)
        parts = self._training.parts(compressed, list(self._taps.values()))
        del self._training, self._state
        for name, linear in compressed.items():
            self._install(name, linear)
        return parts, state.losses

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

    def finish_restoring(self, prefix: str) -> None:
        """Write the model, adapters merged, as a checkpoint into the store; this shard has to be opened anew then."""
        skeleton = self._skeleton
        blocks = [skeleton.block_tensor_names(index) for index in range(skeleton.num_blocks)]
        names = [skeleton.outer_tensor_names(), *blocks]
        save_checkpoint(self._checkpoint, names, self._restoration.merge(), self._store, prefix)
        del self._restoration

    # The published block.

    def publish(self, key: str) -> Published:
        """Begin to write the compressed block into the object store: one safetensors file, ready to load."""
        return self._writer.begin(self._block_index, key, self._compressed)

    def finish_publishing(self) -> None:
        """Wait until the block is written. Raises StoreError."""
        self._writer.finish()

    def publish_outer(self, key: str) -> Published:
        """Write what is outside the blocks, as the checkpoint has it."""
        return put_block(self._store, key, self._skeleton.outer_tensors(), {})

    def install_published(self, key: str, sha256: str) -> None:
        """Put a published block's linears into the block in hand. Raises ArtifactError when it has changed."""
        prefix = self._skeleton.block_name(self._block_index)
        for name, linear in read_linears(self._store.get_bytes(key), sha256, key).items():
            self._install(name.removeprefix(prefix + "."), linear)

    def headway(self) -> tuple[int, int, str]:
        """How many forwards and exchanges there were, and whom this shard waits for; may be called from any thread."""
        num_forwards = sum(stream.num_forwards for stream in list(self._activations.values()))
        return num_forwards, *self._group.headway()

    def cost(self) -> ProcessCost:
        return cost(f"shard {self._group.rank}", self._device, self._opened)

    def _install(self, name: str, compressed: CompressedLinear) -> None:
        self._compressed[name] = compressed
        self._weight(name).copy_(compressed.dequantize())

    def _require_finite(self, finite: bool) -> None:
        if not finite:
            raise NumericalError(f"{self._skeleton.block_name(self._block_index)}: an activation is not finite")

    def _stream(self, stream: str) -> Activations:
        return self._activations[stream_name(stream, self._member)]

    def _row_method(self, member: int) -> Method:
        method = self._methods[member]
        assert not isinstance(method, BlockMethod)
        return method

    def _training_method(self) -> BlockMethod:
        method = self._methods[self._member]
        assert isinstance(method, BlockMethod)
        return method

    def _weight(self, name: str) -> Tensor:
        return self._block.get_parameter(f"{name}.weight").data
