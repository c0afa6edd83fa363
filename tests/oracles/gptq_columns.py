"""GPTQ's quantizer for the shared column loop: proof that the loop carries it, grids fresh or stale."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitpress_workers.numerics.column_solver import solve_columns
from bitpress_workers.numerics.grid import IntegerZeroGrid, fit_integer_zero
from bitpress_workers.numerics.hessian import Factor


@dataclass
class GPTQColumns:
    """stale: a group's grid sees the weights as they were when its column block began, as published code does."""

    weight_IR: Tensor
    factor: Factor
    bits: int
    group_size: int
    column_block: int
    stale: bool
    codes_IR: Tensor
    grid: IntegerZeroGrid
    loss: float = 0.0
    at_block_start: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def solved(
        cls,
        weight_RI: Tensor,
        factor: Factor,
        bits: int,
        *,
        group_size: int | None = None,
        column_block: int = 128,
        stale: bool = False,
    ) -> "GPTQColumns":
        weight_IR = weight_RI.T.contiguous() if factor.order_I is None else weight_RI.T[factor.order_I].contiguous()
        lo, hi = weight_IR.aminmax(dim=0)
        grid = fit_integer_zero(lo, hi, bits, scale_dtype=torch.float32)
        weight_IR[factor.dead_I] = 0
        codes = torch.zeros_like(weight_IR, dtype=torch.uint8)
        size = group_size or len(weight_IR)
        columns = cls(weight_IR, factor, bits, size, column_block, stale, codes, grid)
        solve_columns(weight_IR, factor.upper_II, columns, column_block=column_block, row_tile=weight_IR.shape[1])
        return columns

    def begin_group(self, first: int, weight_KR: Tensor) -> None:
        if self.group_size == len(self.weight_IR):
            return
        if first % self.column_block == 0:
            self.at_block_start = weight_KR.clone()
        group_gR = self.at_block_start[first % self.column_block :] if self.stale else weight_KR
        lo, hi = group_gR[: self.group_size].aminmax(dim=0)
        self.grid = fit_integer_zero(lo, hi, self.bits, scale_dtype=torch.float32)

    def quantize(self, column: int, weight_R: Tensor) -> Tensor:
        codes_R = self.grid.encode(weight_R)
        self.codes_IR[column] = codes_R
        values_R = self.grid.decode(codes_R)
        error_R = (weight_R - values_R) / self.factor.upper_II[column, column]
        self.loss += 0.5 * float(error_R.double().square().sum())
        return values_R
