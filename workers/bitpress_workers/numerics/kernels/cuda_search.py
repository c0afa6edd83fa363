"""The search for each row's grid in one pass: `grid.search_integer_zero` as a Triton kernel.

The candidates' grids are fitted beforehand, by torch as ever. The kernel sums the errors of all of them
while it reads a row's weights; only a power, computed here by exp2 and log2, and the order of the sum
differ from the plain form, so that two candidates change places only where they are equal within float32.
A row is summed alone and in the same order, whatever rows lie beside it.

Shapes: K columns, R rows, S candidates, T rows of a tile.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitpress_workers.numerics.grid import SEARCH_NORM, SEARCH_STEPS, IntegerZeroGrid, candidate_grids, chosen
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
    candidates = candidate_grids(weight_KR, bits, symmetric, scale_dtype)
    return chosen(candidates, search_errors(weight_KR.contiguous(), candidates).argmin(dim=0))


def search_errors(weight_KR: Tensor, candidates: IntegerZeroGrid) -> Tensor:
    """Return each row's error to the 2.4th power on each of its candidate grids [S, R], float64 [S, R]."""
    num_columns, num_rows = weight_KR.shape
    errors_SR = torch.empty_like(candidates.scale, dtype=torch.float64)
    with torch.cuda.device_of(weight_KR):  # Triton launches on the current device
        _search_errors[(SEARCH_STEPS // CANDIDATES, triton.cdiv(num_rows, TILE))](
            weight_KR,
            candidates.scale,
            candidates.zero,
            errors_SR,
            num_columns,
            num_rows,
            MAX_CODE=2**candidates.bits - 1,
            POWER=SEARCH_NORM - 2,
            CANDIDATES=CANDIDATES,
            TILE=TILE,
            CHUNK=CHUNK,
            num_warps=4,
            num_stages=1,
            enable_fp_fusion=False,
        )
    return errors_SR


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
    scale_ST = tl.load(scales + here, mask=inside[None, :], other=1.0)
    zero_ST = tl.load(zeros + here, mask=inside[None, :], other=0.0)
    total_ST = tl.full([CANDIDATES, TILE], 0.0, tl.float64)
    for start in range(0, num_columns, CHUNK):
        part_ST = tl.full([CANDIDATES, TILE], 0.0, tl.float32)
        for column in range(start, tl.minimum(start + CHUNK, num_columns)):
            weight_T = tl.load(weights + column * stride + rows, mask=inside, other=0.0)
            step_ST = round_half_even(tl.div_rn(weight_T[None, :], scale_ST))
            step_ST = tl.minimum(tl.maximum(step_ST, -zero_ST), MAX_CODE - zero_ST)
            error_ST = tl.abs(step_ST * scale_ST - weight_T[None, :])
            # x^2.4 as x^2 * x^0.4: less of the logarithm's error than exp2(2.4 * log2(x)).
            part_ST += error_ST * error_ST * tl.exp2(POWER * tl.log2(error_ST))
        total_ST += part_ST
    # Not a number, where a scale was too large for its type: never the least.
    tl.store(errors + here, tl.where(total_ST >= 0.0, total_ST, float("inf")), mask=inside[None, :])
