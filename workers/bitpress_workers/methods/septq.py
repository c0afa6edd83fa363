"""SEPTQ: one global mask of weights kept in 16 bits, chosen before a column loop on per-row grids.

1. A grid per row, found by search (plain weight error, 2.4-norm).
2. Importance of a weight: its squared rounding error on that grid, divided by U_jj^2.
3. The mask: weights at least as important as the (k+1)-th largest of the whole matrix,
   k = floor(weights * retained_percent / 100); ties are all kept, so 0 percent keeps the largest.
   A weight that lies on its grid, importance 0, is never kept.
4. The column loop, where a kept weight stands for itself: it loses nothing, but takes up
   what earlier columns lost, so the stored value is not the original one.

The k-th largest is exact on any number of shards: importances are not negative, so their order
is that of their bit patterns, and two rounds of histograms (high, then low 16 bits) find it.

Deviations from the published code (github.com/ghtll/SEPTQ): where the threshold is 0 it keeps all
weights, those on the grid too; the grid is searched once, not three times (same result); scales and kept
weights are rounded to 16 bits before use; any number of calibration sequences. Its options that have
no effect there (groups, order, symmetry) do not exist.

Worked example, 2 bits, H = identity (so U = 1): of the row [-1, 0.4, 2] on the grid with scale 1,
zero 1, errors are [0, 0.4, 0]; with 0 percent retained, theta = 0.16 and 0.4 alone stays as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bitpress.formats import OutlierGrouped, statistics
from bitpress.formats.base import ROW_MULTIPLE
from bitpress.formats.grouped_affine import affine_parts
from bitpress.formats.outlier_grouped import Semantics, outlier_parts
from bitpress.methods import SEPTQConfig
from bitpress_workers.methods.base import SolvedRows, TapRows, group_deviations
from bitpress_workers.numerics.column_solver import Columns, solve_columns
from bitpress_workers.numerics.grid import is_too_fine
from bitpress_workers.numerics.hessian import Factor, Factoring, Gram, factorize
from bitpress_workers.numerics.kernels import run_solver, search_integer_zero

COLUMNS_AT_ONCE = 1024  # nothing crosses columns there: this bounds memory and changes no bit
HALF_BITS = 16
HIGH_BINS = 2 ** (31 - HALF_BITS)  # the sign bit is 0
LOW_BINS = 2**HALF_BITS


@dataclass(frozen=True)
class Threshold:
    """What is known of the threshold: its high 16 bits and the rank among those, later its low 16 bits."""

    high: int
    rank: int
    low: int = 0

    @property
    def bit_pattern(self) -> int:
        return self.high << HALF_BITS | self.low


class SEPTQ:
    survey_rounds = 2

    def __init__(self, config: SEPTQConfig, stored_dtype: torch.dtype = torch.float16) -> None:
        self._config = config
        self._stored_dtype = stored_dtype
        self.propagation = config.propagation
        self.factoring = Factoring(config.damping)

    def row_tile(self, at_least: int) -> int:
        return at_least + -at_least % ROW_MULTIPLE

    def factor(self, gram: Gram) -> Factor:
        return factorize(gram, **vars(self.factoring))

    def begin(self, weights: Sequence[Tensor], factor: Factor, row_tile: int) -> "SEPTQRows":
        return SEPTQRows(self._config, weights, factor, row_tile, self._stored_dtype)

    def agree(self, surveys: Sequence[Tensor], agreed: Threshold | None) -> Threshold:
        histogram = torch.stack(list(surveys)).sum(dim=0)
        if agreed is None:
            share = Fraction(str(self._config.retained_percent)) / 100
            return Threshold(*_bin_of_rank(histogram, int(share * int(histogram.sum()))))
        low, rank = _bin_of_rank(histogram, agreed.rank)
        return Threshold(agreed.high, rank, low)


class SEPTQRows:
    """Constant groups: rows of zeros only."""

    def __init__(
        self, config: SEPTQConfig, weights: Sequence[Tensor], factor: Factor, row_tile: int, stored_dtype: torch.dtype
    ) -> None:
        self._config = config
        self._factor = factor
        self.tap_rows = TapRows.of(weights, factor, row_tile)
        self._stored_dtype = stored_dtype
        weight_IR = self.tap_rows.weight_IR
        lo_R, hi_R = weight_IR.amin(dim=0), weight_IR.amax(dim=0)
        self._empty_R = (lo_R == 0) & (hi_R == 0)
        self._too_fine_R = is_too_fine(lo_R.clamp(max=0), hi_R.clamp(min=0), config.bits)
        self._grid = search_integer_zero(weight_IR, config.bits, tiles=self.tap_rows.tiles, scale_dtype=stored_dtype)
        self._importance_IR = self._importance()

    def _importance(self) -> Tensor:
        """Return the bit patterns, int32 [I, R], of the importances; 0 in rows whose scale 16 bits do not hold."""
        weight_IR, pivots_I1 = self.tap_rows.weight_IR, self._factor.upper_II.diagonal()[:, None]
        importance_IR = torch.empty_like(weight_IR)
        parts = (part.split(COLUMNS_AT_ONCE) for part in (weight_IR, pivots_I1, importance_IR))
        for weight_KR, pivots_K1, importance_KR in zip(*parts, strict=True):
            rounded_KR = self._grid.decode(self._grid.encode(weight_KR))
            importance_KR.copy_(rounded_KR.sub_(weight_KR).square_().div_(pivots_K1 * pivots_K1).nan_to_num_(nan=0.0))
        return importance_IR.view(torch.int32)

    def survey(self, agreed: Sequence[Threshold] | None) -> list[list[Tensor]]:
        """Count importances by their high 16 bits, or, once these are known, by their low 16 bits.

        One histogram for all row tiles of a linear: sums of counts do not depend on their order.
        """
        parts = self.tap_rows.split(self._importance_IR)
        return [[_histogram(part, agreed[index] if agreed else None)] for index, part in enumerate(parts)]

    def solve(self, agreed: Sequence[Threshold] | None) -> Iterator[SolvedRows]:
        columns, grid = self.solve_values(agreed), self._grid
        assert columns.kept_IR is not None
        parts = (columns.codes_IR, columns.kept_IR, columns.weight_IR, grid.scale, grid.zero)
        counted = (self._empty_R, self._too_fine_R)
        by_linear = zip(*(self.tap_rows.split(part) for part in (*parts, *counted)), strict=True)
        return (self._stored(*linear) for linear in by_linear)

    def solve_values(self, agreed: Sequence[Threshold] | None) -> Columns:
        """Run the column loop; columns in natural order."""
        assert agreed is not None
        thresholds = torch.tensor([max(threshold.bit_pattern, 1) for threshold in agreed], dtype=torch.int32)
        weight_IR = self.tap_rows.weight_IR
        columns = Columns(
            weight_IR=weight_IR,
            group_size=len(weight_IR),
            fit=lambda first, weight_gR: self._grid,
            dead_I=self._factor.dead_I,
            codes_IR=torch.empty_like(weight_IR, dtype=torch.uint8),
            kept_IR=self._importance_IR >= self.tap_rows.each(thresholds),
            kept_dtype=self._stored_dtype,
        )
        del self._importance_IR  # as large as the weights, and not looked at again
        solve_columns(
            columns,
            self._factor.upper_II,
            column_block=self._config.column_block,
            tiles=self.tap_rows.tiles,
            solve_run=run_solver(weight_IR.device),
        )
        return columns

    def _stored(
        self,
        codes_IR: Tensor,
        kept_IR: Tensor,
        values_IR: Tensor,
        scale_R: Tensor,
        zero_R: Tensor,
        empty_R: Tensor,
        too_fine_R: Tensor,
    ) -> SolvedRows:
        bits = self._config.bits
        scale, zero = statistics.of_integer_zero(scale_R[:, None], zero_R[:, None], bits, symmetric=False)
        codes = affine_parts(codes_IR.T.contiguous(), bits, len(codes_IR), scale, zero)
        semantics: Semantics = "add" if self._config.layered else "replace"
        kept = outlier_parts(kept_IR.T.contiguous(), values_IR.T.contiguous(), semantics)
        deviations = group_deviations(empty_R, too_fine_R, len(codes_IR), None)
        return SolvedRows(OutlierGrouped.from_parts(codes, kept), deviations)


def _histogram(importance_IR: Tensor, known: Threshold | None) -> Tensor:
    """Count all importances by their high half, or those of the known high half by their low half."""
    high = importance_IR >> HALF_BITS
    if known is None:
        return torch.bincount(high.flatten(), minlength=HIGH_BINS)
    return torch.bincount(importance_IR[high == known.high] & (LOW_BINS - 1), minlength=LOW_BINS)


def _bin_of_rank(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the item of this rank (0: the largest), and its rank within the bin."""
    from_top = histogram.flip(0).cumsum(0)
    position = int((from_top <= rank).sum())
    bin_index = len(histogram) - 1 - position
    return bin_index, rank - int(from_top[position] - histogram[bin_index])
