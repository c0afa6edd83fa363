"""The column loop of GPTQ, SpQR and SEPTQ: quantize a column, let the later ones make up for its error.

With H^-1 = U'U and columns in order, column j is replaced by values q, and what it lost,
err = (w - q) / U_jj, is subtracted from every later column k as err * U_jk. Within a block of
columns this is done at once, beyond it by one GEMM at the block's end. What q is, a method says
through a ColumnQuantizer.

Bits do not depend on how rows are shared out: within a block only exactly rounded elementwise
operations touch a weight (a multiplication, then a subtraction), and the GEMM runs per row tile, always in
the same shapes.

Weights lie column by column (weight_IR), so that a column is contiguous.
Shapes: I columns (inputs), R rows of this shard, K columns from the one in hand to the end.
Source: Frantar et al. 2022 (arXiv 2210.17323), Algorithm 1.
"""

from typing import Protocol

import torch
from torch import Tensor


class ColumnQuantizer(Protocol):
    """What a method does with a column; keeps codes and grids for itself.

    group_size: columns that share a grid.
    """

    group_size: int

    def begin_group(self, first: int, weight_KR: Tensor) -> None:
        """Fit the grid of the group that starts at column `first`.

        weight_KR: columns first .. I - 1 as they are now. Those beyond the column block in hand
        lack its corrections, which only matters to groups that cross its end.
        """
        ...

    def quantize(self, column: int, weight_R: Tensor) -> Tensor:
        """Return the values, float32 [R], that stand for this column; weight_R is not modified."""
        ...


def solve_columns(
    weight_IR: Tensor, upper_II: Tensor, quantizer: ColumnQuantizer, *, column_block: int, row_tile: int
) -> None:
    """Quantize all columns in order; weight_IR, float32 [I, R], becomes the values that stand for it.

    upper_II: float32, of `hessian.factorize`, columns in the same order.
    row_tile: rows of one GEMM; the last tile may be short.
    """
    num_columns, num_rows = weight_IR.shape
    column_block = min(column_block, num_columns)
    errors_BR = weight_IR.new_empty(column_block, num_rows)
    products_BR = torch.empty_like(errors_BR)
    for first in range(0, num_columns, column_block):
        last = min(first + column_block, num_columns)
        block_BB = upper_II[first:last, first:last].contiguous()
        pivots = block_BB.diagonal().clone().split(1)
        columns = weight_IR[first:last].unbind()
        errors = errors_BR.unbind()
        for i in range(last - first):
            if (first + i) % quantizer.group_size == 0:
                quantizer.begin_group(first + i, weight_IR[first + i :])
            values_R = quantizer.quantize(first + i, columns[i])
            torch.sub(columns[i], values_R, out=errors[i]).div_(pivots[i])
            columns[i].copy_(values_R)
            rest_KR, products_KR = weight_IR[first + i + 1 : last], products_BR[: last - first - i - 1]
            torch.mul(block_BB[i, i + 1 :, None], errors[i], out=products_KR)
            rest_KR.sub_(products_KR)
        _update_rest(weight_IR[last:], errors_BR[: last - first], upper_II[first:last, last:], row_tile)


def _update_rest(rest_KR: Tensor, errors_BR: Tensor, upper_BK: Tensor, row_tile: int) -> None:
    """Subtract a block's errors from all later columns, one GEMM of fixed shape per row tile."""
    if not rest_KR.numel():
        return
    upper_BK = upper_BK.contiguous()
    for rest_KT, errors_BT in zip(rest_KR.split(row_tile, dim=1), errors_BR.split(row_tile, dim=1), strict=True):
        rest_KT -= upper_BK.T @ errors_BT.contiguous()
