"""How much memory a job will take, before anything is loaded: the largest of its moments.

Each moment is what one shard holds then, read off the code of `Shard`. Shards are taken for processes
of their own, as on Ray; in one process they share what has no shard's name here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch

from bitpress.jobs import JobSpec
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.numerics.hessian import gram_size
from bitpress_workers.pipeline.placement import NUM_SLICES, micro_batch_size
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes

DOCUMENT_TOKENS = 2048  # of the longest document that PTQ1.61's adapter is trained on (published)
# A process with torch and transformers imported; torch for CUDA brings libraries that stay in memory without a GPU.
BASE_BYTES = (610 if torch.version.cuda is None else 890) * 2**20
FORWARD_COPIES = 5  # of a micro-batch, as wide as the widest linear: measured
KERNEL_BYTES = 140 * 2**20  # compiled loops and their compiler, on CPUs

# Float32 copies while rows are solved, packed and compared, of all rows of a tap and of its largest linear: measured.
COPIES = {"rtn": (1.0, 1.0), "gptq": (1.6, 2.1), "spqr": (2.0, 2.0), "septq": (3.3, 1.8)}


@dataclass(frozen=True)
class Memory:
    """Largest bytes of a host that holds all shards and of one accelerator (0 on CPUs), and when that is."""

    host_bytes: int
    device_bytes: int
    moment: str


@dataclass(frozen=True)
class Moment:
    """What all shards of a host (on CPUs) or one device hold at once, while `block` is in hand (None: no block)."""

    name: str
    block: int | None
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """What one job's moments are computed from.

    num_windows: how many are evaluated, of all datasets. offloaded: accelerators hold one micro-batch of the
    activations, going in and coming out, the host all of them. num_members: of the sweep that the job belongs to.
    """

    spec: JobSpec
    method: Method | BlockMethod
    sizes: ModelSizes
    num_windows: int
    kind: str
    num_shards: int
    offloaded: bool = False
    num_members: int = 1

    def memory(self) -> Memory:
        """The largest moment of all."""
        largest = max(self.moments(), key=lambda moment: moment.bytes)
        name = largest.name if largest.block is None else f"{largest.name}, block {largest.block}"
        if self.kind == "cpu":
            return Memory(largest.bytes, 0, name)
        stored = max(block.stored_bytes for block in self.sizes.blocks)
        outer = sum(tensor.bytes for tensor in self.sizes.outer.values())
        host = self.num_shards * (BASE_BYTES + 3 * max(stored, outer))  # one more block is read ahead
        if self.offloaded:
            host += max(self._pinned(calibrating=calibrating) for calibrating in (True, False))
        return Memory(host, largest.bytes, name)

    def moments(self) -> Iterator[Moment]:
        """All moments of each block that is not shaped like the one before it, and those of the whole model."""
        calibration, evaluation = (self._standing(calibrating=calibrating) for calibrating in (True, False))
        for index, block in enumerate(self.sizes.blocks):
            if index and block.shape == self.sizes.blocks[index - 1].shape:
                continue
            weights = self.width * block.num_weights
            if self.num_members > 1:  # as it was before a member changed it; or all members' codes, of 8 bits at most
                weights += self.num_members * block.num_weights if self._alone else weights
            yield Moment("reading", index, calibration + self._each(max(weights, block.stored_bytes)))
            if self._hands_over:
                second = 0 if self.offloaded else self._activations(calibrating=True) // self.num_shards
                passing = self._ahead + second + weights + self._forward(block, calibrating=True)
                yield Moment("handing over", index, calibration + self._each(passing))
            for name, by_shard in self._compressing(block):
                held = sum(by_shard) if self.kind == "cpu" else max(by_shard)
                yield Moment(name, index, calibration + self._each(weights) + held)
            if self.num_windows:
                beside = self._ahead + self._installing(block)
                yield Moment("evaluation", index, evaluation + self._each(weights + beside))
        if self.num_windows:
            logits = 3 * 4 * self.spec.evaluation.sequence_length * self.sizes.vocab_size
            yield Moment("logits", None, evaluation + self._each(logits))
        if preprocessing := getattr(self.spec.method, "preprocessing", None):
            base = BASE_BYTES if self.kind == "cpu" else 0
            yield Moment("restoring", None, base + _restoring_bytes(self.sizes, preprocessing.rank))

    def _standing(self, *, calibrating: bool) -> int:
        """What is there all the time: processes, weights outside the blocks, activations."""
        in_each = self.width * self.sizes.outer_weights
        if self.kind == "cpu":
            in_each += BASE_BYTES + KERNEL_BYTES * self._has_factor
        if self.offloaded:
            return in_each + 2 * self._micro_batch(calibrating=calibrating)
        return self._all(self._activations(calibrating=calibrating), in_each)

    def _micro_batch_tokens(self, *, calibrating: bool) -> int:
        calibration, evaluation = self.spec.calibration, self.spec.evaluation
        length = calibration.sequence_length if calibrating else evaluation.sequence_length
        total = -(-calibration.num_sequences // NUM_SLICES) if calibrating else self.num_windows
        return min(micro_batch_size(length), total) * length

    def _micro_batch(self, *, calibrating: bool) -> int:
        """Activations of one forward."""
        return self.width * self._micro_batch_tokens(calibrating=calibrating) * self.sizes.hidden_size

    def _pinned(self, *, calibrating: bool) -> int:
        """Activations of all shards in host memory; torch rounds what it pins up to powers of two."""
        one = max(self._micro_batch(calibrating=calibrating), 1)
        num_batches = -(-self._activations(calibrating=calibrating) // one)
        return (2 if calibrating and self._hands_over else 1) * num_batches * (1 << (one - 1).bit_length())

    @property
    def _hands_over(self) -> bool:
        """Whether a shard looks ahead, for which it takes a second stream of activations."""
        return self._alone and self.num_shards > 1

    @property
    def _alone(self) -> bool:
        """Whether a shard calibrates its blocks alone, for all members at once."""
        return self.spec.strategy == "independent"

    @property
    def _ahead(self) -> int:
        """The block that is read ahead, as stored; beside an accelerator the host has it."""
        return max((block.stored_bytes for block in self.sizes.blocks[1:]), default=0) if self.kind == "cpu" else 0

    @property
    def width(self) -> int:
        """Bytes of a weight and of an activation in memory."""
        if self.kind == "cpu" or isinstance(self.method, BlockMethod):
            return 4
        first = self.sizes.blocks[0]
        return first.stored_bytes // first.num_weights

    def _compressing(self, block: BlockSizes) -> Iterator[tuple[str, list[int]]]:
        """Moments with what each shard has beyond the block."""
        method, shards = self.method, range(self.num_shards)
        if self._hands_over:  # each as if there were no other, and all at the same time
            for name, (held,) in replace(self, num_shards=1)._compressing(block):
                yield name, [held for _ in shards]
            return
        if isinstance(method, BlockMethod):
            length = self.spec.calibration.sequence_length
            training = self._ahead + _training_bytes(block.num_weights, self.sizes, length)
            yield "training", [training for _ in shards]
            return
        owners = {tap.name: number % self.num_shards for number, tap in enumerate(block.taps)}
        stages = [block.taps] if method.propagation == "block" else block.stages
        for stage in stages:
            columns = {tap.name: block.linears[tap.linears[0]][1] for tap in stage}
            owned = [[columns[tap.name] for tap in stage if owners[tap.name] == shard] for shard in shards]
            yield (
                "Hessians",
                [self._hessians(list(columns.values())) + self._forward(block, calibrating=True) for _ in shards],
            )
            yield "factors", [self._factors(list(columns.values()), of_shard) for of_shard in owned]
            ahead = self._ahead if stage is stages[-1] else 0
            for tap in stage:
                solving = ahead + self._solving({name: 4 * prod(block.linears[name]) for name in tap.linears})
                of_tap = columns[tap.name]
                owned[owners[tap.name]].remove(of_tap)
                yield f"solving {tap.name}", [self._solved_with([of_tap, *rest]) + solving for rest in owned]

    @property
    def _has_factor(self) -> bool:
        """Whether the method looks at a Hessian's factor."""
        return hasattr(self.spec.method, "damping")

    def _gram(self, num_columns: int) -> int:
        return 4 * gram_size(num_columns, torch.device(self.kind))

    def _solved_with(self, columns: list[int]) -> int:
        """What taps of so many columns are solved with: Grams, and factors where the method looks at them."""
        return sum(self._gram(number) + 4 * number**2 * self._has_factor for number in columns)

    def _factors(self, columns: list[int], owned: list[int]) -> int:
        """Of a stage's taps, some of them a shard's own: all shards' Grams of these come to it; a factor takes two."""
        collected = _nodes(self._slices()) * sum(map(self._gram, columns))
        others = min(self.num_shards - 1, NUM_SLICES, self.spec.calibration.num_sequences)  # that hold a slice
        arriving = others * _nodes(self._slices()) * max(map(self._gram, owned), default=0)
        factorizing = [
            self._solved_with(owned[:index])
            + sum(map(self._gram, owned[index:]))
            + self._has_factor * (2 * 4 * number**2)
            for index, number in enumerate(owned)
        ]
        return max([collected + arriving, *factorizing])

    def _solving(self, rows: dict[str, int]) -> int:
        method = self.spec.method
        all_rows = sum(rows.values()) // self.num_shards
        largest = min(max(rows.values()), all_rows)
        of_all, of_largest = COPIES[method.kind]
        return int(of_all * all_rows + of_largest * largest)

    def _installing(self, block: BlockSizes) -> int:
        """A published file twice, as bytes and tensors, and its largest linear three times, or a forward."""
        largest = max(prod(shape) for shape in block.linears.values())
        return max(block.num_weights + 3 * 4 * largest, self._forward(block, calibrating=False))

    def _hessians(self, columns: list[int]) -> int:
        """Every tap's tree beside the slice that is gathered, when that is most."""
        most = max(_nodes(before) + 1 for before in range(self._slices()))
        return most * sum(map(self._gram, columns))

    def _slices(self) -> int:
        """Of the shard that has most."""
        return -(-min(NUM_SLICES, self.spec.calibration.num_sequences) // self.num_shards)

    def _forward(self, block: BlockSizes, *, calibrating: bool) -> int:
        """What a block holds of one micro-batch on its way through."""
        widest = max(max(shape) for shape in block.linears.values())
        return self.width * FORWARD_COPIES * self._micro_batch_tokens(calibrating=calibrating) * widest

    def _activations(self, *, calibrating: bool) -> int:
        """Of all shards together."""
        calibration, evaluation = self.spec.calibration, self.spec.evaluation
        if calibrating:
            streams = (
                3 if isinstance(self.method, BlockMethod) else self.num_shards if self._alone else self.num_members
            )
            tokens = streams * calibration.num_sequences * calibration.sequence_length
        else:
            tokens = (1 + self.num_members) * self.num_windows * evaluation.sequence_length
        return self.width * tokens * self.sizes.hidden_size

    def _all(self, shared_out: int, in_each: int) -> int:
        """Bytes of the host, or of one device, that has a shard of what is shared out."""
        return shared_out + self._each(in_each) if self.kind == "cpu" else shared_out // self.num_shards + in_each

    def _each(self, in_each: int) -> int:
        return self.num_shards * in_each if self.kind == "cpu" else in_each


def _nodes(num_slices: int) -> int:
    """Grams of one tap that a holder of the first slices is left with; see `hessian.GramTree`."""
    return num_slices.bit_count()


def _training_bytes(num_weights: int, sizes: ModelSizes, sequence_length: int) -> int:
    """What a training step on one sequence takes: six numbers a weight, twenty a row and token, four scores a head."""
    tokens = 20 * sequence_length * _widest(sizes) + 4 * sizes.num_heads * sequence_length**2
    return 4 * (6 * num_weights + tokens)


def _restoring_bytes(sizes: ModelSizes, rank: int) -> int:
    """What the whole model takes with an adapter in training: two copies of the weights while it is written."""
    whole = 2 * sum(block.num_weights for block in sizes.blocks) + sizes.outer_weights
    adapters = 4 * rank * sum(sum(shape) for block in sizes.blocks for shape in block.linears.values())
    tokens = DOCUMENT_TOKENS * (len(sizes.blocks) * sizes.hidden_size + 4 * sizes.vocab_size)
    return 4 * (whole + adapters + tokens) + _training_bytes(0, sizes, DOCUMENT_TOKENS)


def _widest(sizes: ModelSizes) -> int:
    return max(max(shape) for block in sizes.blocks for shape in block.linears.values())
