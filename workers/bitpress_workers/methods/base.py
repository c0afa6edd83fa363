"""The seam between a method and whatever spreads it over devices.

A method solves one linear given the factor of its tap's Hessian. Rows are independent given that
factor, so a shard solves only its rows; what does cross rows passes through `survey` (on each
shard), `agree` (once) and then `solve` (on each shard).

Bits must not depend on how rows are shared out. Rows are grouped into row tiles of a fixed size;
a shard always holds whole tiles (the last tile of a linear may be short). Anything that is not an
exactly rounded elementwise operation (a GEMM, a power, a sum) runs tile by tile, so its shape is
the same whatever the sharding; surveys are one per tile and are agreed on in tile order.

Shapes: O rows (outputs), I columns (inputs), R rows of one shard.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from bitpress.formats.base import CompressedLinear
from bitpress_workers.numerics.hessian import Factor, Gram

Survey = Any
Agreement = Any


class RowSolver(Protocol):
    """The rows of one linear that one shard solves; keeps what survey computed for solve.

    num_constant_groups: after solve, row groups without any spread, which decode to their one value.
    """

    num_constant_groups: int

    def survey(self, agreed: Agreement | None) -> Sequence[Survey]:
        """Return one survey per row tile, given what the round before agreed on (None at first)."""
        ...

    def solve(self, agreed: Agreement | None) -> CompressedLinear:
        """Solve these rows and return them as they will be stored."""
        ...


class Method(Protocol):
    """One compression method with its parameters.

    propagation: "block": all Hessians of a block come from one forward of the block as it was;
    "tap": a tap's Hessian sees the linears before it already compressed.
    survey_rounds: how many survey/agree rounds come before solve (0: rows are wholly independent).
    """

    propagation: Literal["block", "tap"]
    survey_rounds: int

    def row_tile(self, at_least: int) -> int:
        """Smallest number of rows, `at_least` or more, that shards may be cut at multiples of."""
        ...

    def factor(self, gram: Gram) -> Factor:
        """Damp and factorize a tap's Hessian. Raises NumericalError."""
        ...

    def begin(self, weight_RI: Tensor, factor: Factor, row_tile: int) -> RowSolver:
        """Take float32 rows [R, I] (not modified), whole tiles of `row_tile` rows."""
        ...

    def agree(self, surveys: Sequence[Survey], agreed: Agreement | None) -> Agreement:
        """Merge the surveys of all row tiles, in tile order, into what the next round or solve needs."""
        ...
