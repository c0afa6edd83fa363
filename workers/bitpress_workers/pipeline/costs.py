"""What a block costs: floating-point operations by phase, of matrix products and elementwise.

A multiplication and an addition are two operations. Shapes of a linear: m rows (outputs), n columns
(inputs); T tokens. Counted is what this implementation does: half of a Hessian's product, two thirds of
n^3 for a factor, half of a product for each linear's output and its error.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Literal

from bitpress.jobs import JobSpec
from bitpress.methods import GPTQConfig, MethodConfig, PTQ161Config, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.models.family import Tap
from bitpress_workers.numerics.triangular import COLUMNS_OF_A_BLOCK
from bitpress_workers.pipeline.placement import rows_of
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes

Phase = Literal["forward", "hessian", "factor", "solve", "evidence", "training", "restoring", "evaluation"]

# Elementwise operations on a weight, read off the kernels.
SEARCH = 80 * 12  # candidates of `grid.search_integer_zero`, and what one costs
ROUNDING = 10  # onto a known grid
LEAVE_ONE_OUT = 30  # of SpQR: three grids for each group, since only its extremes are left out
IMPORTANCE = 6  # of SEPTQ, with both histograms
FAKE_WEIGHT = 6  # of PTQ1.61, forward and backward, for each training step


@dataclass
class Cost:
    """Operations by phase. products: in matrix products; elementwise: all others."""

    products: Counter[Phase] = field(default_factory=Counter)
    elementwise: Counter[Phase] = field(default_factory=Counter)

    def add(self, other: "Cost", times: int = 1) -> None:
        for mine, theirs in ((self.products, other.products), (self.elementwise, other.elementwise)):
            mine.update({phase: times * flops for phase, flops in theirs.items()})


def block_cost(
    spec: JobSpec, sizes: ModelSizes, block: BlockSizes, num_windows: int, kind: str, num_shards: int
) -> Cost:
    """What one block costs, evaluation included; the last block is taken for one that is passed through."""
    cost, calibration = Cost(), spec.calibration
    tokens = calibration.num_sequences * calibration.sequence_length
    forward = _forward(sizes, block, tokens, calibration.sequence_length)
    if isinstance(spec.method, PTQ161Config):
        _train(cost, spec.method, block, forward, calibration.num_sequences)
    else:
        cost.products["forward"] = int(_passes(spec, block, num_shards) * forward)
        for tap in block.taps:
            _solve(cost, spec.method, block, tap, tokens * (sizes.expert_share if tap.routed else 1), kind)
    if num_windows:
        length = spec.evaluation.sequence_length
        cost.products["evaluation"] = 2 * _forward(sizes, block, num_windows * length, length)
    return cost


def head_flops(spec: JobSpec, sizes: ModelSizes, num_windows: int) -> int:
    """Of the logits of both evaluated models."""
    return 2 * 2 * sizes.vocab_size * sizes.hidden_size * num_windows * spec.evaluation.sequence_length


def factor_flops(num_columns: int) -> int:
    """A Cholesky factorization and the inversion of its factor: n^3 / 3 each."""
    return 2 * num_columns**3 // 3


def factor_share(method: MethodConfig, block: BlockSizes, num_shards: int) -> float:
    """Part of a block's factorizations that one has to wait for: shards take taps in turn, stage by stage."""
    cubes = [block.linears[tap.linears[0]][1] ** 3 for tap in block.taps]
    lengths = [len(cubes)] if _propagation(method) == "block" else [len(stage) for stage in block.stages]
    waited, first = 0, 0
    for last in accumulate(lengths):
        waited += max(sum(cubes[first + shard : last : num_shards]) for shard in range(num_shards))
        first = last
    return waited / sum(cubes)


def row_share(block: BlockSizes, row_tile: int, num_shards: int) -> float:
    """Part of a block's solving that one has to wait for: whole tiles of rows are shared out, tap by tap."""
    waited, total = 0, 0
    for tap in block.taps:
        columns, rows = block.linears[tap.linears[0]][1], {name: block.linears[name][0] for name in tap.linears}
        shards = [rows_of(rows, row_tile, num_shards, shard) for shard in range(num_shards)]
        waited += columns**2 * max(sum(map(len, of_shard.values())) for of_shard in shards)
        total += columns**2 * sum(rows.values())
    return waited / total


def _passes(spec: JobSpec, block: BlockSizes, num_shards: int) -> float:
    """Forwards of all sequences: an independent block is passed with its Hessians, most once more to look ahead."""
    if spec.strategy == "independent":
        return 2 - 1 / num_shards
    return 2 if _propagation(spec.method) == "block" else len(block.stages) + 1


def hessian_flops(num_columns: int, num_tokens: float, kind: str) -> int:
    """X'X in blocks of columns, on and above the diagonal."""
    size = COLUMNS_OF_A_BLOCK[kind]
    pairs = sum(min(size, num_columns - start) * (num_columns - start) for start in range(0, num_columns, size))
    return int(2 * num_tokens * pairs)


def loop_flops(num_rows: int, num_columns: int, column_block: int) -> tuple[int, int]:
    """The column loop's products (m n^2) and elementwise operations (m n B), for blocks of B columns."""
    parts = [min(column_block, num_columns - first) for first in range(0, num_columns, column_block)]
    rests = [num_columns - min(first + column_block, num_columns) for first in range(0, num_columns, column_block)]
    products = sum(2 * part * rest for part, rest in zip(parts, rests, strict=True))
    return num_rows * products, num_rows * sum(part * part for part in parts)


def _forward(sizes: ModelSizes, block: BlockSizes, num_tokens: int, sequence_length: int) -> int:
    """Of one pass: every weight of a linear for each of its tokens, and attention's two products of all pairs."""
    weights = sum(
        prod(block.linears[name]) * (sizes.expert_share if tap.routed else 1.0)
        for tap in block.taps
        for name in tap.linears
    )
    return int(2 * num_tokens * weights) + 4 * num_tokens * sequence_length * sizes.hidden_size


def _solve(cost: Cost, method: MethodConfig, block: BlockSizes, tap: Tap, tokens: float, kind: str) -> None:
    num_columns = block.linears[tap.linears[0]][1]
    num_rows = sum(block.linears[name][0] for name in tap.linears)
    num_weights = num_rows * num_columns
    cost.products["hessian"] += hessian_flops(num_columns, tokens, kind)
    cost.products["evidence"] += 2 * hessian_flops(num_columns, num_rows, kind)  # products of the same strips
    cost.elementwise["solve"] += num_weights * _by_weight(method)
    if not isinstance(method, RTNConfig | PTQ161Config):
        products, elementwise = loop_flops(num_rows, num_columns, method.column_block)
        cost.products["factor"] += factor_flops(num_columns)
        cost.products["solve"] += products
        cost.elementwise["solve"] += elementwise


def _by_weight(method: MethodConfig) -> int:
    match method:
        case GPTQConfig(mse_search=True):
            return ROUNDING + SEARCH
        case SEPTQConfig():
            return ROUNDING + SEARCH + IMPORTANCE
        case SpQRConfig(simplified_outliers=False):
            return ROUNDING + LEAVE_ONE_OUT
        case _:
            return ROUNDING


def _propagation(method: MethodConfig) -> str:
    return getattr(method, "propagation", "block")


def _train(cost: Cost, method: PTQ161Config, block: BlockSizes, forward: int, num_sequences: int) -> None:
    """Passes: the dense model's, the targets, the evidence with two more products, the advance; a step is three."""
    cost.products["forward"] = 4 * forward
    cost.products["evidence"] = 2 * forward
    cost.products["training"] = method.epochs * 3 * forward
    num_weights = sum(prod(shape) for shape in block.linears.values())
    cost.elementwise["training"] = method.epochs * num_sequences * FAKE_WEIGHT * num_weights


def restoring_flops(spec: JobSpec, sizes: ModelSizes, document_tokens: int, documents_per_step: int) -> int:
    """Of training the adapter: forward, and backward to the activations, whose weights stay as they are."""
    preprocessing = getattr(spec.method, "preprocessing", None)
    if preprocessing is None:
        return 0
    passes = sum(_forward(sizes, block, document_tokens, document_tokens) for block in sizes.blocks)
    head = 2 * document_tokens * sizes.vocab_size * sizes.hidden_size
    return preprocessing.steps * documents_per_step * 2 * (passes + head)
