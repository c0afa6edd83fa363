"""The range of a group without the weights that spoil it, compiled: `leave_one_out`, one row at a time.

Shapes: g columns of a group, R rows.
"""

import numpy as np

from bitpress_workers.numerics.grid import MAX_REAL_ZERO, SMALLEST
from bitpress_workers.numerics.kernels.cpu_compile import Float, Floats, compiled

ZERO, ONE, TWO, INFINITY = np.float32(0), np.float32(1), np.float32(2), np.float32(np.inf)
FARTHEST, SMALLEST_SCALE = np.float32(MAX_REAL_ZERO), np.float32(min(SMALLEST.values()))
SMALLEST_DIVISOR = np.float32(1e-9)


@compiled
def patched_range(
    weight_gR: Floats, pivots_g: Floats, top: Float, symmetric: bool, threshold_R: Floats, range_2R: Floats
) -> None:
    """Write smallest and largest weight of each row after its candidates were replaced. top: the largest code."""
    size, num_rows = weight_gR.shape
    group_g, gains_g, losses_g = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    for r in range(num_rows):
        for k in range(size):
            group_g[k] = weight_gR[k, r]
        if size > 1:
            _gains(group_g, pivots_g, top, symmetric, gains_g, losses_g)
            _replace(group_g, gains_g, threshold_R[r])
        lo, hi = group_g[0], group_g[0]
        for k in range(1, size):
            lo, hi = min(lo, group_g[k]), max(hi, group_g[k])
        range_2R[0, r], range_2R[1, r] = lo, hi


@compiled
def _gains(group_g: Floats, pivots_g: Floats, top: Float, symmetric: bool, gains_g: Floats, losses_g: Floats) -> None:
    """Write by how much the group's error falls when a weight is left out."""
    lowest, next_lo = _smallest(group_g, ONE)
    highest, next_hi = _smallest(group_g, -ONE)
    lo, hi, next_hi = group_g[lowest], group_g[highest], -next_hi
    total = _losses(group_g, pivots_g, lo, hi, top, symmetric, -1, gains_g)
    if next_lo > lo:
        gains_g[lowest] = total - _losses(group_g, pivots_g, next_lo, hi, top, symmetric, lowest, losses_g)
    if next_hi < hi:
        gains_g[highest] = total - _losses(group_g, pivots_g, lo, next_hi, top, symmetric, highest, losses_g)


@compiled
def _smallest(group_g: Floats, sign: Float) -> tuple[int, Float]:
    """Return the index of the smallest of sign * weight, and the next smallest value, which may be the same."""
    index, smallest, second = 0, sign * group_g[0], INFINITY
    for k in range(1, len(group_g)):
        value = sign * group_g[k]
        if value < smallest:
            index, smallest, second = k, value, smallest
        elif value < second:
            second = value
    return index, second


@compiled
def _losses(
    group_g: Floats,
    pivots_g: Floats,
    lo: Float,
    hi: Float,
    top: Float,
    symmetric: bool,
    left_out: int,
    losses_g: Floats,
) -> Float:
    """Write ((w - q) / d)**2 of all weights on the grid from lo to hi; return their sum but for one."""
    scale, zero = _fit(lo, hi, top, symmetric)
    divisor = SMALLEST_DIVISOR if scale < SMALLEST_DIVISOR else scale
    for k in range(len(group_g)):
        code = np.rint(group_g[k] / divisor + zero)
        code = ZERO if code < ZERO else code
        code = top if code > top else code
        loss = ((code - zero) * scale - group_g[k]) / pivots_g[k]
        losses_g[k] = loss * loss
    total = ZERO
    for k in range(len(group_g)):
        if k != left_out:
            total += losses_g[k]
    return total


@compiled
def _fit(lo: Float, hi: Float, top: Float, symmetric: bool) -> tuple[Float, Float]:
    """As `grid.fit_real_zero`."""
    if symmetric:
        hi = max(abs(lo), abs(hi))
        return max(hi * TWO / top, SMALLEST_SCALE), (top + ONE) / TWO
    if max(abs(lo), abs(hi)) * top > (hi - lo) * FARTHEST:
        lo, hi = min(lo, ZERO), max(hi, ZERO)
    scale = max((hi - lo) / top, SMALLEST_SCALE)
    return scale, -lo / scale


@compiled
def _replace(group_g: Floats, gains_g: Floats, threshold: Float) -> None:
    """Replace weights whose gain exceeds the threshold by the mean of the others, or 0."""
    total, count = -ZERO, 0
    for k in range(len(group_g)):
        if gains_g[k] > threshold:
            total += ZERO
        else:
            total += group_g[k]
            count += 1
    mean = total / np.float32(max(count, 1))
    for k in range(len(group_g)):
        if gains_g[k] > threshold:
            group_g[k] = mean
