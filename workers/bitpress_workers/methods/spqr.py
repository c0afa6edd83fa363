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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, lcm

import torch
from torch import Tensor

from bitpress.formats import GroupedAffine, OutlierGrouped
from bitpress.formats.base import ROW_MULTIPLE, Part
from bitpress.formats.grouped_affine import affine_parts
from bitpress.formats.outlier_grouped import outlier_parts
from bitpress.methods import SpQRConfig
from bitpress_workers.methods.base import SolvedRows, TapRows, group_deviations
from bitpress_workers.methods.spqr_statistics import records
from bitpress_workers.numerics.column_solver import Columns, solve_columns
from bitpress_workers.numerics.grid import RealZeroGrid, fit_real_zero, is_too_fine
from bitpress_workers.numerics.hessian import Factor, Factoring, Gram, factorize
from bitpress_workers.numerics.kernels import patched_range, run_solver


@dataclass(frozen=True)
class Spread:
    """Count, mean and sum of squared deviations of each column, divided by d_j: float64 [I]."""

    count: int
    mean_I: Tensor
    squares_I: Tensor


class SpQR:
    def __init__(self, config: SpQRConfig, stored_dtype: torch.dtype = torch.float16) -> None:
        self._config = config
        self._stored_dtype = stored_dtype
        self.propagation = config.propagation
        self.factoring = Factoring(config.damping, config.order, dead_columns="after damping")
        self.survey_rounds = 0 if config.outlier_threshold is None else 1

    def row_tile(self, at_least: int) -> int:
        return at_least + -at_least % lcm(ROW_MULTIPLE, self._config.statistics_group_size)

    def factor(self, gram: Gram) -> Factor:
        return factorize(gram, **vars(self.factoring))

    def begin(self, weights: Sequence[Tensor], factor: Factor, row_tile: int) -> "SpQRRows":
        return SpQRRows(self._config, weights, factor, row_tile, self._stored_dtype)

    def agree(self, surveys: Sequence[Spread], agreed: float | None) -> float:
        """Return T; infinite when the rows do not differ, or there is but one: then nothing tells an outlier."""
        assert self._config.outlier_threshold is not None
        total = surveys[0]
        for spread in surveys[1:]:
            total = _merge(total, spread)
        variance_I = total.squares_I / max(total.count - 1, 1)
        return self._config.outlier_threshold * float(variance_I.mean()) or inf


def _merge(a: Spread, b: Spread) -> Spread:
    """Source: Chan, Golub, LeVeque 1979, updating formulae for sample variances."""
    count = a.count + b.count
    delta_I = b.mean_I - a.mean_I
    mean_I = a.mean_I + delta_I * (b.count / count)
    squares_I = a.squares_I + b.squares_I + delta_I * delta_I * (a.count * b.count / count)
    return Spread(count, mean_I, squares_I)


class SpQRRows:
    """Constant groups: row groups without any spread, dead columns apart."""

    def __init__(
        self, config: SpQRConfig, weights: Sequence[Tensor], factor: Factor, row_tile: int, stored_dtype: torch.dtype
    ) -> None:
        self._config = config
        self._factor = factor
        self.tap_rows = TapRows.of(weights, factor, row_tile)
        self._stored_dtype = stored_dtype
        self._pivots_I = factor.upper_II.diagonal().clone()
        self._all_dead = factor.dead_I.tolist()
        self._group_size = min(config.group_size or factor.num_columns, factor.num_columns)
        self.scale, self.zero = records(config, stored_dtype, self.tap_rows.counts, factor.dead_I.device)
        self._constant: list[Tensor] = []
        self._too_fine: list[Tensor] = []

    def survey(self, agreed: Sequence[float] | None) -> list[list[Spread]]:
        pivots_I1 = self._pivots_I[:, None].double()

        def spread(tile_IT: Tensor) -> Spread:
            scaled_IT = tile_IT.double() / pivots_I1
            mean_I1 = scaled_IT.mean(dim=1, keepdim=True)
            return Spread(tile_IT.shape[1], mean_I1.flatten(), (scaled_IT - mean_I1).square_().sum(dim=1))

        return self.tap_rows.by_tile(spread)

    def solve(self, agreed: Sequence[float] | None) -> Iterator[SolvedRows]:
        columns = self.solve_values(agreed)
        constant_GR, too_fine_GR = torch.stack(self._constant), torch.stack(self._too_fine)
        kept_IR = torch.zeros_like(constant_GR) if columns.kept_IR is None else columns.kept_IR
        split = self.tap_rows.split
        stored = zip(self.scale.stored(), self.zero.stored(), strict=True)
        codes = (self._codes(*linear) for linear in zip(split(columns.codes_IR), stored, strict=True))
        thresholds: Sequence[float | None] = agreed or [None] * len(self.tap_rows.counts)
        kept = zip(split(kept_IR), split(columns.weight_IR), thresholds, strict=True)
        counted = zip(split(constant_GR), split(too_fine_GR), strict=True)
        return (self._stored(*linear) for linear in zip(codes, kept, counted, strict=True))

    def solve_values(self, thresholds: Sequence[float] | None) -> Columns:
        """Run the column loop; columns in solve order."""
        weight_IR = self.tap_rows.weight_IR
        threshold_R = None
        if thresholds is not None:
            threshold_R = self.tap_rows.each(torch.tensor(thresholds, dtype=torch.float32))
        columns = Columns(
            weight_IR=weight_IR,
            group_size=self._group_size,
            fit=lambda first, weight_gR: self._fit(first, weight_gR, threshold_R),
            dead_I=self._factor.dead_I,
            codes_IR=torch.empty_like(weight_IR, dtype=torch.uint8),
            threshold_R=threshold_R,
            kept_IR=None if threshold_R is None else torch.zeros_like(weight_IR, dtype=torch.bool),
            kept_dtype=self._stored_dtype,
        )
        solve_columns(
            columns,
            self._factor.upper_II,
            column_block=self._config.column_block,
            tiles=self.tap_rows.tiles,
            solve_run=run_solver(weight_IR.device),
        )
        return columns

    def _fit(self, first: int, weight_gR: Tensor, threshold_R: Tensor | None) -> RealZeroGrid:
        config, last = self._config, first + len(weight_gR)
        if threshold_R is not None and not config.simplified_outliers:
            pivots_g = self._pivots_I[first:last]
            lo_R, hi_R = patched_range(weight_gR, pivots_g, config.bits, config.symmetric, threshold_R)
        else:
            lo_R, hi_R = weight_gR.amin(dim=0), weight_gR.amax(dim=0)
        constant_R, too_fine_R = lo_R == hi_R, is_too_fine(lo_R, hi_R, config.bits)
        if all(self._all_dead[first:last]):
            constant_R = torch.zeros_like(constant_R)
        self._constant.append(constant_R)
        self._too_fine.append(too_fine_R)
        grid = fit_real_zero(lo_R, hi_R, config.bits, symmetric=config.symmetric, round_zero=config.round_zero)
        return RealZeroGrid(self.scale.keep(grid.scale), self.zero.keep(grid.zero), config.bits)

    def _codes(self, codes_IR: Tensor, statistics: tuple[Part, Part]) -> Part:
        return affine_parts(
            codes_IR.T.contiguous(),
            self._config.bits,
            self._group_size,
            *statistics,
            order_I=self._factor.order_I,
            dead_columns=self._factor.dead_I.nonzero().flatten(),
        )

    def _stored(
        self, codes: Part, kept: tuple[Tensor, Tensor, float | None], counted: tuple[Tensor, Tensor]
    ) -> SolvedRows:
        config, (kept_IR, values_IR, threshold) = self._config, kept
        deviations = group_deviations(*counted, len(values_IR), config.group_size)
        if config.scale_bits is not None:
            deviations["short-statistics"] = int(kept_IR.shape[1] % config.statistics_group_size != 0)
        if threshold is None:
            return SolvedRows(GroupedAffine.from_parts(codes), deviations)
        deviations["no-threshold"] = kept_IR.shape[1] if threshold == inf else 0
        outliers = outlier_parts(kept_IR.T.contiguous(), values_IR.T.contiguous())
        return SolvedRows(OutlierGrouped.from_parts(codes, outliers), deviations)
