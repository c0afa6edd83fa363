"""GPTQ: columns one by one, each rounded on its row's grid, its error made up for by the later ones.

1. A grid per row, or per row and group of columns, from smallest to largest weight (always
   containing 0), or shrunk until the 2.4-norm of the weights' errors is smallest.
2. Column loop (`column_solver`), in natural order or by descending activation.

Grids of groups are fitted when the loop reaches them, on weights already corrected; or all before
the first column, on groups of columns as they lie in the weight (static); or on weights without
the corrections of their own column block (stale), which is what the published code does.

Worked example, 2 bits, H = [[2, 1], [1, 2]], damping 0.01: of [0.4, 0.3] on the grid with scale
0.1333 and zero 0, 0.4 is exact, nothing is fed back, and 0.3 becomes 0.2667.

Source: Frantar et al. 2022 (arXiv 2210.17323). Deviations from its published code
(github.com/IST-DASLab/gptq): scales are rounded to 16 bits before use; symmetric grids span
-max|w| .. max|w| for every row; ties of the activation order go by index.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bitpress.formats import GroupedAffine, statistics
from bitpress.formats.base import ROW_MULTIPLE
from bitpress.formats.grouped_affine import affine_parts
from bitpress.methods import GPTQConfig
from bitpress_workers.methods.base import Agreement, SolvedRows, Survey, TapRows, group_deviations
from bitpress_workers.numerics.column_solver import Columns, solve_columns
from bitpress_workers.numerics.grid import IntegerZeroGrid, fit_integer_zero, is_too_fine, stack
from bitpress_workers.numerics.hessian import Factor, Factoring, Gram, factorize
from bitpress_workers.numerics.kernels import run_solver, search_integer_zero


class GPTQ:
    survey_rounds = 0

    def __init__(self, config: GPTQConfig, stored_dtype: torch.dtype = torch.float16) -> None:
        self._config = config
        self._stored_dtype = stored_dtype
        self.propagation = config.propagation
        self.factoring = Factoring(config.damping, config.order)

    def row_tile(self, at_least: int) -> int:
        return at_least + -at_least % ROW_MULTIPLE

    def factor(self, gram: Gram) -> Factor:
        return factorize(gram, **vars(self.factoring))

    def begin(self, weights: Sequence[Tensor], factor: Factor, row_tile: int) -> "GPTQRows":
        return GPTQRows(self._config, weights, factor, row_tile, self._stored_dtype)

    def agree(self, surveys: Sequence[Survey], agreed: Agreement | None) -> Agreement:
        raise AssertionError("rows of GPTQ have nothing to agree on")


class GPTQRows:
    """Constant groups: those of zeros only."""

    def __init__(
        self, config: GPTQConfig, weights: Sequence[Tensor], factor: Factor, row_tile: int, stored_dtype: torch.dtype
    ) -> None:
        self._config = config
        self._weights = weights
        self._factor = factor
        self.tap_rows = TapRows.of(weights, factor, row_tile)
        self._stored_dtype = stored_dtype
        self._group_size = min(config.group_size or factor.num_columns, factor.num_columns)
        self._fixed = config.group_size is None or config.static_groups
        self._grids: list[IntegerZeroGrid] = []
        self._empty: list[Tensor] = []
        self._too_fine: list[Tensor] = []

    def survey(self, agreed: Sequence[Agreement] | None) -> Sequence[Sequence[Survey]]:
        return [[] for _ in self._weights]

    def solve(self, agreed: Sequence[Agreement] | None) -> Iterator[SolvedRows]:
        columns = self.solve_values()
        order_I, codes_IR = self._factor.order_I, columns.codes_IR
        if self._fixed and order_I is not None:
            # The grids belong to columns as they lie, so the codes are stored as they lie.
            codes_IR = codes_IR[torch.argsort(order_I)]
            order_I = None
        grids = stack(self._grids)
        parts = (codes_IR, grids.scale, grids.zero, torch.stack(self._empty), torch.stack(self._too_fine))
        by_linear = zip(*(self.tap_rows.split(part) for part in parts), strict=True)
        return (self._stored(*(part.T.contiguous() for part in linear), order_I=order_I) for linear in by_linear)

    def solve_values(self) -> Columns:
        """Run the column loop."""
        rows, config = self.tap_rows, self._config
        columns = Columns(
            weight_IR=rows.weight_IR,
            group_size=self._group_size,
            fit=self._fit,
            dead_I=self._factor.dead_I,
            codes_IR=torch.empty_like(rows.weight_IR, dtype=torch.uint8),
            stale=config.stale_groups,
        )
        if self._fixed:
            order_I, grids = self._factor.order_I, self._fixed_grids()
            natural_I = torch.arange(len(rows.weight_IR), device=rows.weight_IR.device)
            columns.group_I = (natural_I if order_I is None else order_I) // self._group_size
            columns.group_size, columns.fit = len(rows.weight_IR), lambda first, weight_gR: grids
        solve_columns(
            columns,
            self._factor.upper_II,
            column_block=config.column_block,
            tiles=rows.tiles,
            solve_run=run_solver(rows.weight_IR.device),
        )
        return columns

    def _fixed_grids(self) -> IntegerZeroGrid:
        """Fit all grids [G, R] to columns as they lie; one for the whole row is fitted to dead columns as well."""
        order_I, dead_columns = self._factor.order_I, self._factor.dead_columns
        weight_IR = self.tap_rows.weight_IR
        if order_I is not None:
            weight_IR = weight_IR[torch.argsort(order_I)]
        if len(dead_columns) and not self._config.static_groups:
            dead_values = torch.cat([weight_RI[:, dead_columns].T for weight_RI in self._weights], dim=1)
            weight_IR = weight_IR.index_copy(0, dead_columns, dead_values)
        for start in range(0, len(weight_IR), self._group_size):
            self._fit(start, weight_IR[start : start + self._group_size])
        return stack(self._grids)

    def _fit(self, first: int, weight_gR: Tensor) -> IntegerZeroGrid:
        """Fit the next grid, scale and zero [R]."""
        config = self._config
        lo_R, hi_R = weight_gR.amin(dim=0), weight_gR.amax(dim=0)  # aminmax is slower
        self._empty.append((lo_R == 0) & (hi_R == 0))
        self._too_fine.append(is_too_fine(lo_R.clamp(max=0), hi_R.clamp(min=0), config.bits))
        if config.mse_search:
            grid = search_integer_zero(
                weight_gR,
                config.bits,
                tiles=self.tap_rows.tiles,
                symmetric=config.symmetric,
                scale_dtype=self._stored_dtype,
            )
        else:
            grid = fit_integer_zero(lo_R, hi_R, config.bits, symmetric=config.symmetric, scale_dtype=self._stored_dtype)
        self._grids.append(grid)
        return grid

    def _stored(
        self,
        codes_RI: Tensor,
        scale_RG: Tensor,
        zero_RG: Tensor,
        empty_RG: Tensor,
        too_fine_RG: Tensor,
        *,
        order_I: Tensor | None,
    ) -> SolvedRows:
        config = self._config
        scale, zero = statistics.of_integer_zero(scale_RG, zero_RG, config.bits, symmetric=config.symmetric)
        codes = affine_parts(codes_RI, config.bits, self._group_size, scale, zero, order_I=order_I)
        deviations = group_deviations(empty_RG, too_fine_RG, codes_RI.shape[1], config.group_size)
        return SolvedRows(GroupedAffine.from_parts(codes), deviations)
