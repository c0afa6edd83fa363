"""SpQR's leave-one-out search and the range it leaves, in one launch: `leave_one_out.patched_range` as a Triton kernel.

A thread takes a row through its group three times: for the two smallest and the two largest weights, for
the errors on the three grids these make, and for the range without the candidates. Sums go column by
column, as in the plain form, whose bits on a CPU these are. (On a GPU torch divides by a plain number
with its reciprocal, so there the plain form's last bit may differ.)

Shapes: g columns of a group, R rows, T rows of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitpress_workers.numerics.grid import MAX_REAL_ZERO, SMALLEST
from bitpress_workers.numerics.kernels.cuda_arithmetic import encode

TILE = 128  # rows of a program, one a thread
SMALLEST_SCALE = tl.constexpr(SMALLEST[torch.float32])
FARTHEST_ZERO = tl.constexpr(MAX_REAL_ZERO)


def patched_range(
    weight_gR: Tensor, pivots_g: Tensor, bits: int, symmetric: bool, threshold_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Return smallest and largest weight [R] of a group whose candidates, gains above threshold_R, are replaced.

    weight_gR: float32, not modified; pivots_g: d of its columns; threshold_R: float32.
    """
    group_size, num_rows = weight_gR.shape
    if group_size == 1:
        return weight_gR[0], weight_gR[0]
    lo_R, hi_R = weight_gR.new_empty(2, num_rows)
    with torch.cuda.device_of(weight_gR):  # Triton launches on the current device
        _patched_range[(triton.cdiv(num_rows, TILE),)](
            weight_gR.contiguous(),
            pivots_g.contiguous(),
            threshold_R,
            lo_R,
            hi_R,
            group_size,
            num_rows,
            MAX_CODE=2**bits - 1,
            SYMMETRIC_ZERO=2 ** (bits - 1) if symmetric else None,
            TILE=TILE,
            num_warps=TILE // 32,
            num_stages=1,
            enable_fp_fusion=False,
        )
    return lo_R, hi_R


@triton.jit
def _fit(lo, hi, MAX_CODE: tl.constexpr, SYMMETRIC_ZERO: tl.constexpr):
    """Return scale and zero of the grid from lo to hi: `grid.fit_real_zero`."""
    largest = tl.maximum(tl.abs(lo), tl.abs(hi))
    if SYMMETRIC_ZERO is not None:
        scale = tl.maximum(tl.div_rn(largest * 2, MAX_CODE * 1.0), SMALLEST_SCALE)
        zero = scale * 0.0 + SYMMETRIC_ZERO
    else:
        far = largest * MAX_CODE > (hi - lo) * FARTHEST_ZERO
        lo = tl.where(far, tl.minimum(lo, 0.0), lo)
        hi = tl.where(far, tl.maximum(hi, 0.0), hi)
        scale = tl.maximum(tl.div_rn(hi - lo, MAX_CODE * 1.0), SMALLEST_SCALE)
        zero = tl.div_rn(-lo, scale)
    return scale, zero


@triton.jit
def _smallest_two(weights, group_size, stride, rows, inside, sign, infinity):
    """Return the smallest and the second smallest weight of each row; with sign -1 the largest."""
    first, second = infinity, infinity
    for column in range(group_size):
        weight = sign * tl.load(weights + column * stride + rows, mask=inside, other=0.0)
        second = tl.minimum(second, tl.maximum(first, weight))
        first = tl.minimum(first, weight)
    return sign * first, sign * second


@triton.jit
def _error(weight, scale, zero, pivot, MAX_CODE: tl.constexpr):
    lost = tl.div_rn((encode(weight, scale, zero, MAX_CODE, True) - zero) * scale - weight, pivot)
    return lost * lost


@triton.jit(do_not_specialize=["group_size", "num_rows"])
def _patched_range(
    weights,
    pivots,
    thresholds,
    lows,
    highs,
    group_size,
    num_rows,
    MAX_CODE: tl.constexpr,
    SYMMETRIC_ZERO: tl.constexpr,
    TILE: tl.constexpr,
):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = rows < num_rows
    stride = num_rows.to(tl.int64)
    infinity = tl.full([TILE], float("inf"), tl.float32)
    nothing = tl.full([TILE], 0.0, tl.float32)

    smallest, second_smallest = _smallest_two(weights, group_size, stride, rows, inside, 1.0, infinity)
    largest, second_largest = _smallest_two(weights, group_size, stride, rows, inside, -1.0, infinity)
    scale, zero = _fit(smallest, largest, MAX_CODE, SYMMETRIC_ZERO)
    low_scale, low_zero = _fit(second_smallest, largest, MAX_CODE, SYMMETRIC_ZERO)
    high_scale, high_zero = _fit(smallest, second_largest, MAX_CODE, SYMMETRIC_ZERO)
    total, low_total, high_total = nothing, nothing, nothing
    for column in range(group_size):
        weight = tl.load(weights + column * stride + rows, mask=inside, other=0.0)
        pivot = tl.load(pivots + column)
        total += _error(weight, scale, zero, pivot, MAX_CODE)
        low_error = _error(weight, low_scale, low_zero, pivot, MAX_CODE)
        low_total += tl.where(weight == smallest, 0.0, low_error)
        high_error = _error(weight, high_scale, high_zero, pivot, MAX_CODE)
        high_total += tl.where(weight == largest, 0.0, high_error)

    # Two weights that are both the smallest, or both the largest, each leave the grid as it is.
    one_smallest, one_largest = smallest < second_smallest, largest > second_largest
    threshold = tl.load(thresholds + rows, mask=inside, other=0.0)
    low, high, others, count = infinity, -infinity, nothing, nothing
    for column in range(group_size):
        weight = tl.load(weights + column * stride + rows, mask=inside, other=0.0)
        gain = _error(weight, scale, zero, tl.load(pivots + column), MAX_CODE)
        gain = tl.where(one_smallest & (weight == smallest), total - low_total, gain)
        gain = tl.where(one_largest & (weight == largest), total - high_total, gain)
        keep = ~(gain > threshold)
        low = tl.where(keep, tl.minimum(low, weight), low)
        high = tl.where(keep, tl.maximum(high, weight), high)
        others += tl.where(keep, weight, 0.0)
        count += tl.where(keep, 1.0, 0.0)
    mean = tl.div_rn(others, tl.maximum(count, 1.0))
    tl.store(lows + rows, tl.where(count < group_size, tl.minimum(low, mean), low), mask=inside)
    tl.store(highs + rows, tl.where(count < group_size, tl.maximum(high, mean), high), mask=inside)
