"""SpQR: small groups whose scales and zeros are themselves quantized, and outliers kept in 16 bits.

1. Threshold: T = outlier_threshold * mean_j(Var_j / d_j^2), Var_j the variance of column j over all
   rows (surveyed per row tile in float64, merged in tile order), d = diag(U).
2. Column loop, columns by descending activation. At the start of a group, per row: a weight whose
   removal lowers the group's error by more than T is a candidate, and is replaced by the mean of
   the others; the grid is fitted to what results, then scales and zeros are quantized, those of
   `statistics_group_size` consecutive rows together.
3. A weight whose final error (w - q)^2 / d_j^2 exceeds T is an outlier: it stays, in 16 bits.
   Candidates are not outliers by themselves, nor the other way round.

Source: Dettmers et al. 2023 (arXiv 2306.03078). Deviations from its published code
(github.com/Vahe1994/SpQR): second-level statistics and outliers are rounded to 16 bits before use, not
when saved; dead columns decode to exactly 0, and groups or statistics without any spread to what
they were (both went astray there); a last group or statistics tile may be short, so any shape works; leave-one-out
refits only for a group's extremes, since removing any other weight leaves the grid as it was.

Worked example, 2 bits: the group [1, 2, 3] spans 2, so scale = 2/3 and zero = -1.5; the codes are
[0, 2, 3] and the values [1, 2.3333, 3].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitpress.formats import CompressedLinear, GroupedAffine, OutlierGrouped
from bitpress.formats.base import ROW_MULTIPLE
from bitpress.formats.grouped_affine import affine_parts
from bitpress.formats.outlier_grouped import outlier_parts
from bitpress.methods import SpQRConfig
from bitpress_workers.methods.spqr_statistics import records
from bitpress_workers.numerics.column_solver import solve_columns
from bitpress_workers.numerics.grid import RealZeroGrid, fit_real_zero
from bitpress_workers.numerics.hessian import Factor, Gram, factorize
from bitpress_workers.numerics.leave_one_out import leave_one_out_gains, replace_candidates


@dataclass(frozen=True)
class Spread:
    """Count, mean and sum of squared deviations of each column, divided by d_j: float64 [I]."""

    count: int
    mean_I: Tensor
    squares_I: Tensor


class SpQR:
    propagation: Literal["block", "tap"] = "block"

    def __init__(self, config: SpQRConfig, stored_dtype: torch.dtype = torch.float16) -> None:
        self._config = config
        self._stored_dtype = stored_dtype
        self.survey_rounds = 0 if config.outlier_threshold is None else 1

    def row_tile(self, at_least: int) -> int:
        return at_least + -at_least % math.lcm(ROW_MULTIPLE, self._config.statistics_group_size)

    def factor(self, gram: Gram) -> Factor:
        config = self._config
        return factorize(gram, damping=config.damping, order=config.order, dead_columns="after damping")

    def begin(self, weight_RI: Tensor, factor: Factor, row_tile: int) -> "SpQRRows":
        return SpQRRows(self._config, weight_RI, factor, row_tile, self._stored_dtype)

    def agree(self, surveys: Sequence[Spread], agreed: float | None) -> float:
        """Return T."""
        assert self._config.outlier_threshold is not None
        total = surveys[0]
        for spread in surveys[1:]:
            total = _merge(total, spread)
        variance_I = total.squares_I / max(total.count - 1, 1)
        return self._config.outlier_threshold * float(variance_I.mean())


def _merge(a: Spread, b: Spread) -> Spread:
    """Source: Chan, Golub, LeVeque 1979, updating formulae for sample variances."""
    count = a.count + b.count
    delta_I = b.mean_I - a.mean_I
    mean_I = a.mean_I + delta_I * (b.count / count)
    squares_I = a.squares_I + b.squares_I + delta_I * delta_I * (a.count * b.count / count)
    return Spread(count, mean_I, squares_I)


class SpQRRows:
    """num_constant_groups: row groups without any spread, dead columns apart."""

    num_constant_groups = 0

    def __init__(
        self, config: SpQRConfig, weight_RI: Tensor, factor: Factor, row_tile: int, stored_dtype: torch.dtype
    ) -> None:
        self._config = config
        self._factor = factor
        self._row_tile = row_tile
        self._stored_dtype = stored_dtype
        weight_IR = weight_RI.T.contiguous() if factor.order_I is None else weight_RI.T[factor.order_I].contiguous()
        self._weight_IR = weight_IR.masked_fill(factor.dead_I[:, None], 0)

    def survey(self, agreed: float | None) -> Sequence[Spread]:
        pivots_I1 = self._factor.upper_II.diagonal()[:, None].double()
        spreads = []
        for tile_IT in self._weight_IR.split(self._row_tile, dim=1):
            scaled_IT = tile_IT.contiguous().double() / pivots_I1
            mean_I1 = scaled_IT.mean(dim=1, keepdim=True)
            squares_I = (scaled_IT - mean_I1).square_().sum(dim=1)
            spreads.append(Spread(tile_IT.shape[1], mean_I1.flatten(), squares_I))
        return spreads

    def solve(self, agreed: float | None) -> CompressedLinear:
        quantizer, weight_IR = self.solve_values(agreed)
        self.num_constant_groups = int(quantizer.num_constant_groups)
        codes = affine_parts(
            quantizer.codes_IR.T.contiguous(),
            self._config.bits,
            quantizer.group_size,
            quantizer.scale.stored(),
            quantizer.zero.stored(),
            order_I=self._factor.order_I,
            dead_columns=self._factor.dead_I.nonzero().flatten(),
        )
        if agreed is None:
            return GroupedAffine.from_parts(codes)
        outliers = outlier_parts(quantizer.mask_IR.T.contiguous(), weight_IR.T.contiguous())
        return OutlierGrouped.from_parts(codes, outliers)

    def solve_values(self, threshold: float | None) -> tuple["OutlierQuantizer", Tensor]:
        """Run the column loop; return its quantizer and the weight's values, float32 [I, R] in solve order."""
        factor = self._factor
        quantizer = OutlierQuantizer(self._config, factor, self._weight_IR.shape, threshold, self._stored_dtype)
        weight_IR = self._weight_IR.clone()
        solve_columns(
            weight_IR, factor.upper_II, quantizer, column_block=self._config.column_block, row_tile=self._row_tile
        )
        return quantizer, weight_IR


class OutlierQuantizer:
    """Grids per row and group, outliers above a threshold; threshold None: no outliers.

    scale, zero: how these are kept, group by group.
    codes_IR: uint8; an outlier's is that of 0, which nothing reads. mask_IR: bool, outliers.
    """

    def __init__(
        self,
        config: SpQRConfig,
        factor: Factor,
        shape: tuple[int, ...],
        threshold: float | None,
        stored_dtype: torch.dtype,
    ) -> None:
        device = factor.upper_II.device
        self._config = config
        self._threshold = threshold
        self._stored_dtype = stored_dtype
        self._pivots_I = factor.upper_II.diagonal().clone()
        self._pivots = self._pivots_I.split(1)
        self._dead = factor.dead_I.tolist()
        self.group_size = min(config.group_size or shape[0], shape[0])
        self.scale, self.zero = records(config, stored_dtype)
        self.codes_IR = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.mask_IR = torch.zeros(shape, dtype=torch.bool, device=device)
        self.num_constant_groups = torch.zeros((), dtype=torch.int64, device=device)

    def begin_group(self, first: int, weight_KR: Tensor) -> None:
        config = self._config
        group_gR = weight_KR[: self.group_size]
        last = first + len(group_gR)
        if self._threshold is not None and not config.simplified_outliers:
            gains_gR = leave_one_out_gains(group_gR, self._pivots_I[first:last], config.bits, config.symmetric)
            group_gR = replace_candidates(group_gR, gains_gR > self._threshold)
        lo_R, hi_R = group_gR.aminmax(dim=0)
        if not all(self._dead[first:last]):
            self.num_constant_groups += (lo_R == hi_R).sum()
        grid = fit_real_zero(lo_R, hi_R, config.bits, symmetric=config.symmetric, round_zero=config.round_zero)
        self._grid = RealZeroGrid(self.scale.keep(grid.scale), self.zero.keep(grid.zero), config.bits)
        self._code_of_zero_R = self._grid.encode(torch.zeros_like(lo_R))

    def quantize(self, column: int, weight_R: Tensor) -> Tensor:
        if self._dead[column]:
            return torch.zeros_like(weight_R)
        codes_R = self._grid.encode(weight_R)
        values_R = self._grid.decode(codes_R)
        if self._threshold is not None:
            error_R = torch.sub(weight_R, values_R).div_(self._pivots[column])
            outlier_R = torch.gt(error_R.square_(), self._threshold, out=self.mask_IR[column])
            codes_R = torch.where(outlier_R, self._code_of_zero_R, codes_R)
            values_R = torch.where(outlier_R, weight_R.to(self._stored_dtype).float(), values_R)
        self.codes_IR[column] = codes_R
        return values_R
