"""SEPTQ: one global mask of weights kept in 16 bits, chosen before a column loop on per-row grids.

1. A grid per row, found by search (plain weight error, 2.4-norm).
2. Importance of a weight: its squared rounding error on that grid, divided by U_jj^2.
3. The mask: weights at least as important as the (k+1)-th largest of the whole matrix,
   k = floor(weights * retained_percent / 100); ties are all kept, so 0 percent keeps the largest.
4. The column loop, where a kept weight stands for itself: it loses nothing, but takes up
   what earlier columns lost, so the stored value is not the original one.

The k-th largest is exact on any number of shards: importances are not negative, so their order
is that of their bit patterns, and two rounds of histograms (high, then low 16 bits) find it.

Deviations from the published code (github.com/ghtll/SEPTQ): the grid is searched once, not three
times (same result); scales and kept weights are rounded to 16 bits before use; any number of
calibration sequences. Its options that have no effect there (groups, order, symmetry) do not exist.

Worked example, 2 bits, H = identity (so U = 1): of the row [-1, 0.4, 2] on the grid with scale 1,
zero 1, errors are [0, 0.4, 0]; with 0 percent retained, theta = 0.16 and 0.4 alone stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from bitpress.formats import CompressedLinear, OutlierGrouped, statistics
from bitpress.formats.base import ROW_MULTIPLE
from bitpress.formats.grouped_affine import affine_parts
from bitpress.formats.outlier_grouped import outlier_parts
from bitpress.methods import SEPTQConfig
from bitpress_workers.numerics.column_solver import solve_columns
from bitpress_workers.numerics.grid import IntegerZeroGrid, search_integer_zero
from bitpress_workers.numerics.hessian import Factor, Gram, factorize

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
    propagation: Literal["block", "tap"] = "tap"
    survey_rounds = 2

    def __init__(self, config: SEPTQConfig, stored_dtype: torch.dtype = torch.float16) -> None:
        self._config = config
        self._stored_dtype = stored_dtype

    def row_tile(self, at_least: int) -> int:
        return at_least + -at_least % ROW_MULTIPLE

    def factor(self, gram: Gram) -> Factor:
        return factorize(gram, damping=self._config.damping)

    def begin(self, weight_RI: Tensor, factor: Factor, row_tile: int) -> "SEPTQRows":
        return SEPTQRows(self._config, weight_RI, factor, row_tile, self._stored_dtype)

    def agree(self, surveys: Sequence[Tensor], agreed: Threshold | None) -> Threshold:
        histogram = torch.stack(list(surveys)).sum(dim=0)
        if agreed is None:
            share = Fraction(str(self._config.retained_percent)) / 100
            return Threshold(*_bin_of_rank(histogram, int(share * int(histogram.sum()))))
        low, rank = _bin_of_rank(histogram, agreed.rank)
        return Threshold(agreed.high, rank, low)


class SEPTQRows:
    """num_constant_groups: rows of zeros only."""

    num_constant_groups = 0

    def __init__(
        self, config: SEPTQConfig, weight_RI: Tensor, factor: Factor, row_tile: int, stored_dtype: torch.dtype
    ) -> None:
        self._config = config
        self._factor = factor
        self._row_tile = row_tile
        self._weight_RI = weight_RI.masked_fill(factor.dead_I, 0)
        tiles = [
            search_integer_zero(tile, config.bits, scale_dtype=stored_dtype) for tile in self._weight_RI.split(row_tile)
        ]
        self._grid = IntegerZeroGrid(
            torch.cat([tile.scale for tile in tiles]), torch.cat([tile.zero for tile in tiles]), config.bits
        )
        self._stored_dtype = stored_dtype
        self._importance_RI = self._importance()

    def _importance(self) -> Tensor:
        """Return the bit patterns, int32 [R, I], of the importances."""
        pivots_I = self._factor.upper_II.diagonal()
        rounded_RI = self._grid.decode(self._grid.encode(self._weight_RI))
        return rounded_RI.sub_(self._weight_RI).square_().div_(pivots_I * pivots_I).view(torch.int32)

    def survey(self, agreed: Threshold | None) -> Sequence[Tensor]:
        """Count importances by their high 16 bits, or, once these are known, by their low 16 bits.

        One histogram for all row tiles: sums of counts do not depend on their order.
        """
        num_bins = HIGH_BINS if agreed is None else LOW_BINS
        histogram = torch.zeros(num_bins, dtype=torch.int64, device=self._importance_RI.device)
        for tile in self._importance_RI.split(self._row_tile):
            high = tile >> HALF_BITS
            counted = high.flatten() if agreed is None else tile[high == agreed.high] & (LOW_BINS - 1)
            histogram += torch.bincount(counted, minlength=num_bins)
        return [histogram]

    def solve(self, agreed: Threshold | None) -> CompressedLinear:
        quantizer, weight_IR = self.solve_values(agreed)
        values_RI = weight_IR.T.contiguous()
        mask_RI = quantizer.mask_IR.T.contiguous()
        self.num_constant_groups = int((self._weight_RI == 0).all(dim=1).sum())
        codes = affine_parts(
            quantizer.codes_IR.T.contiguous(),
            self._config.bits,
            values_RI.shape[1],
            statistics.float16(self._grid.scale),
            statistics.integer(self._grid.zero, self._config.bits),
        )
        return OutlierGrouped.from_parts(codes, outlier_parts(mask_RI, values_RI))

    def solve_values(self, agreed: Threshold | None) -> tuple["MaskedQuantizer", Tensor]:
        """Run the column loop; return its quantizer and the weight's values, float32 [I, R]."""
        assert agreed is not None
        mask_IR = (self._importance_RI >= agreed.bit_pattern).T.contiguous()
        quantizer = MaskedQuantizer(self._grid, mask_IR, self._stored_dtype)
        weight_IR = self._weight_RI.T.contiguous()
        solve_columns(
            weight_IR,
            self._factor.upper_II,
            quantizer,
            column_block=self._config.column_block,
            row_tile=self._row_tile,
        )
        return quantizer, weight_IR


class MaskedQuantizer:
    """A grid per row for the whole loop; masked weights stand for themselves, in 16 bits.

    codes_IR: uint8; under the mask the nearest code, which nothing reads.
    """

    def __init__(self, grid: IntegerZeroGrid, mask_IR: Tensor, stored_dtype: torch.dtype) -> None:
        self.group_size = len(mask_IR)
        self.mask_IR = mask_IR
        self.codes_IR = torch.empty_like(mask_IR, dtype=torch.uint8)
        self._grid = IntegerZeroGrid(grid.scale.flatten(), grid.zero.flatten(), grid.bits)
        self._stored_dtype = stored_dtype

    def begin_group(self, first: int, weight_KR: Tensor) -> None:
        pass

    def quantize(self, column: int, weight_R: Tensor) -> Tensor:
        codes_R = self._grid.encode(weight_R)
        self.codes_IR[column] = codes_R
        kept_R = weight_R.to(self._stored_dtype).float()
        return torch.where(self.mask_IR[column], kept_R, self._grid.decode(codes_R))


def _bin_of_rank(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the item of this rank (0: the largest), and its rank within the bin."""
    from_top = histogram.flip(0).cumsum(0)
    position = int((from_top <= rank).sum())
    bin_index = len(histogram) - 1 - position
    return bin_index, rank - int(from_top[position] - histogram[bin_index])
