"""The search for each row's grid in one pass: `grid.search_integer_zero` as a Triton kernel.

The candidates' grids are fitted beforehand, by torch as ever. The kernel sums the errors of all of them
while it reads a row's weights; only a power, computed here by exp2 and log2, and the order of the sum
differ from the plain form, so that two candidates change places only where they are equal within float32.
A row is summed alone and in the same order, whatever rows lie beside it.

Shapes: K columns, R rows, C candidates.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitpress_workers.numerics.grid import SEARCH_NORM, SEARCH_STEPS, IntegerZeroGrid, fit_integer_zero
from bitpress_workers.numerics.kernels.cuda_arithmetic import round_half_even

TILE = 32  # rows of a program
CANDIDATES = 16  # of a program; a divisor of SEARCH_STEPS
CHUNK = 128  # columns whose errors are summed in float32 before they join the float64 total


def search_integer_zero(
    weight_KR: Tensor, bits: int, *, tiles: Sequence[int], symmetric: bool, scale_dtype: torch.dtype
) -> IntegerZeroGrid:
    """Fit a grid per row by shrinking its range until the error's 2.4-norm is smallest; the widest wins ties.

    weight_KR: float32, not modified; tiles: unused, a row's bits depend on that row alone.
    Returns scale and zero [R].
    """
    lo_R, hi_R = weight_KR.aminmax(dim=0)
    shrink_C1 = torch.tensor([1 - step / 100 for step in range(SEARCH_STEPS)], device=weight_KR.device)[:, None]
    grids = fit_integer_zero(shrink_C1 * lo_R, shrink_C1 * hi_R, bits, symmetric=symmetric, scale_dtype=scale_dtype)
    best_1R = search_errors(weight_KR.contiguous(), grids).argmin(dim=0, keepdim=True)
    return IntegerZeroGrid(grids.scale.gather(0, best_1R)[0], grids.zero.gather(0, best_1R)[0], bits)


def search_errors(weight_KR: Tensor, grids: IntegerZeroGrid) -> Tensor:
    """Return each row's error to the 2.4th power on each of its candidate grids, float64 [C, R]."""
    num_columns, num_rows = weight_KR.shape
    errors_CR = torch.empty_like(grids.scale, dtype=torch.float64)
    _search_errors[(SEARCH_STEPS // CANDIDATES, triton.cdiv(num_rows, TILE))](
        weight_KR,
        grids.scale,
        grids.zero,
        errors_CR,
        num_columns,
        num_rows,
        MAX_CODE=2**grids.bits - 1,
        POWER=SEARCH_NORM - 2,
        CANDIDATES=CANDIDATES,
        TILE=TILE,
        CHUNK=CHUNK,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return errors_CR


@triton.jit(do_not_specialize=["num_columns", "num_rows"])
def _search_errors(
    weights,
    scales,
    zeros,
    errors,
    num_columns,
    num_rows,
    MAX_CODE: tl.constexpr,
    POWER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    candidates = tl.program_id(0) * CANDIDATES + tl.arange(0, CANDIDATES)
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = rows < num_rows
    stride = num_rows.to(tl.int64)
    here = candidates[:, None] * stride + rows[None, :]
    scale_CT = tl.load(scales + here, mask=inside[None, :], other=1.0)
    zero_CT = tl.load(zeros + here, mask=inside[None, :], other=0.0)
    total_CT = tl.full([CANDIDATES, TILE], 0.0, tl.float64)
    for start in range(0, num_columns, CHUNK):
        part_CT = tl.full([CANDIDATES, TILE], 0.0, tl.float32)
        for column in range(start, tl.minimum(start + CHUNK, num_columns)):
            weight_T = tl.load(weights + column * stride + rows, mask=inside, other=0.0)
            step_CT = round_half_even(tl.div_rn(weight_T[None, :], scale_CT))
            step_CT = tl.minimum(tl.maximum(step_CT, -zero_CT), MAX_CODE - zero_CT)
            error_CT = tl.abs(step_CT * scale_CT - weight_T[None, :])
            # x^2.4 as x^2 * x^0.4: less of the logarithm's error than exp2(2.4 * log2(x)).
            part_CT += error_CT * error_CT * tl.exp2(POWER * tl.log2(error_CT))
        total_CT += part_CT
    # Not a number, where a scale was too large for its type: never the least.
    tl.store(errors + here, tl.where(total_CT >= 0.0, total_CT, float("inf")), mask=inside[None, :])
