"""The seam between a method and whatever spreads it over devices.

A method solves the linears of one tap together, given the factor of the tap's Hessian. Rows are
independent given that factor, so a shard solves only its rows; what does cross rows passes through
`survey` (on each shard), `agree` (once for each linear) and then `solve` (on each shard).

Bits must not depend on how rows are shared out. Rows are grouped into row tiles of a fixed size;
a shard always holds whole tiles (the last tile of a linear may be short). Anything that is not an
exactly rounded elementwise operation (a GEMM, a power, a sum) runs tile by tile, so its shape is
the same whatever the sharding; surveys are one per tile and are agreed on in tile order.

Shapes: O rows (outputs), I columns (inputs), R rows of one shard: of one linear, or of all of a tap's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from bitpress.artifacts import LinearDeviation
from bitpress.formats.base import CompressedLinear
from bitpress_workers.numerics.hessian import Factor, Factoring, Gram

Survey = Any
Agreement = Any


class RowSolver(Protocol):
    """The rows of a tap's linears that one shard solves; keeps what survey computed for solve."""

    def survey(self, agreed: Sequence[Agreement] | None) -> Sequence[Sequence[Survey]]:
        """Return for each linear one survey per row tile, given what the round before agreed on (None at first)."""
        ...

    def solve(self, agreed: Sequence[Agreement] | None) -> Iterator["SolvedRows"]:
        """Solve these rows and yield them, linear by linear, as they will be stored.

        Raises NumericalError when the linear that is next cannot be stored.
        """
        ...


@dataclass(frozen=True)
class SolvedRows:
    """Some rows of one linear. deviations: how often something happened that the report's ledger names."""

    compressed: CompressedLinear
    deviations: Mapping[LinearDeviation, int]


def group_deviations(
    constant: Tensor, too_fine: Tensor, num_columns: int, group_size: int | None
) -> dict[LinearDeviation, int]:
    """Count row groups that are all alike, those of which 16 bits hold no scale, and those that are short.

    constant, too_fine: bool, one for each row and group [G, R] or [R, G], rows first or last alike.
    """
    num_rows = constant.numel() // -(-num_columns // (group_size or num_columns))
    is_short = group_size is not None and num_columns % group_size != 0
    return {
        "constant-groups": int(constant.sum()),
        "too-fine-groups": int(too_fine.sum()),
        "short-groups": num_rows if is_short else 0,
    }


class Method(Protocol):
    """One compression method with its parameters.

    propagation: "block": all Hessians of a block come from one forward of the block as it was;
    "tap" and "linear": a Hessian sees the taps or linears before it already compressed, which is the
    same: linears of one tap read the same input, which none of them changes.
    survey_rounds: how many survey/agree rounds come before solve (0: rows are wholly independent).
    """

    propagation: Literal["block", "tap", "linear"]
    survey_rounds: int

    @property
    def factoring(self) -> Factoring | None:
        """What `factor` does to a Hessian, None when it looks at none: methods that agree in it share factors."""
        ...

    def row_tile(self, at_least: int) -> int:
        """Smallest number of rows, `at_least` or more, that shards may be cut at multiples of."""
        ...

    def factor(self, gram: Gram) -> Factor:
        """Damp and factorize a tap's Hessian. Raises NumericalError."""
        ...

    def begin(self, weights: Sequence[Tensor], factor: Factor, row_tile: int) -> RowSolver:
        """Take float32 rows [R, I] of each linear (not modified), whole tiles of `row_tile` rows."""
        ...

    def agree(self, surveys: Sequence[Survey], agreed: Agreement | None) -> Agreement:
        """Merge the surveys of all row tiles of a linear, in tile order, into what the next round or solve needs."""
        ...


@dataclass(frozen=True)
class TapRows:
    """Rows of a tap's linears side by side, columns in solve order.

    weight_IR: float32, dead columns 0. counts: rows of each linear.
    """

    weight_IR: Tensor
    counts: tuple[int, ...]
    row_tile: int

    @classmethod
    def of(cls, weights: Sequence[Tensor], factor: Factor, row_tile: int) -> Self:
        """Copy rows [R, I] of each linear into solve order."""
        counts = tuple(map(len, weights))
        weight_IR = weights[0].new_empty(factor.num_columns, sum(counts))
        for part_IR, weight_RI in zip(weight_IR.split(counts, dim=1), weights, strict=True):
            part_IR.copy_(weight_RI.T)  # twice as fast as cat
        if factor.order_I is not None:
            weight_IR = weight_IR[factor.order_I]
        weight_IR[factor.dead_I] = 0
        return cls(weight_IR, counts, row_tile)

    @property
    def tiles(self) -> list[int]:
        """Rows of each row tile, in order; none lies in two linears."""
        return [min(self.row_tile, n - start) for n in self.counts for start in range(0, n, self.row_tile)]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut [..., R] by linear."""
        return values.split(list(self.counts), dim=-1)

    def by_tile(self, function: Callable[[Tensor], Any]) -> list[list[Any]]:
        """Apply a function to each row tile [I, T], linear by linear."""
        return [
            [function(tile_IT.contiguous()) for tile_IT in weight_IR.split(self.row_tile, dim=1)]
            for weight_IR in self.split(self.weight_IR)
        ]

    def each(self, per_linear: Tensor) -> Tensor:
        """Repeat one number of each linear, [linears], for each of its rows, [R]."""
        device = self.weight_IR.device
        return per_linear.to(device).repeat_interleave(torch.tensor(self.counts, device=device))
