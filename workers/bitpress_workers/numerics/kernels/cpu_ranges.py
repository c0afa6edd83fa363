"""The range of a group without the weights that spoil it, compiled: `leave_one_out` for a tile of rows at a time.

The innermost loops run over the rows of a tile, which the processor takes many at once. It does so only
where few arrays meet in a loop, since it has to make sure that none of them overlap.

Shapes: g columns of a group, R rows, T rows of a tile.
"""

import numpy as np

from bitpress_workers.numerics import grid
from bitpress_workers.numerics.grid import MAX_REAL_ZERO, SMALLEST_FLOAT32
from bitpress_workers.numerics.kernels.cpu_compile import Float, Floats, Integers, compiled

TILE = 128
ZERO, ONE, TWO, INFINITY = np.float32(0), np.float32(1), np.float32(2), np.float32(np.inf)
FARTHEST, SMALLEST_SCALE = np.float32(MAX_REAL_ZERO), np.float32(SMALLEST_FLOAT32)
SMALLEST_DIVISOR = np.float32(grid.SMALLEST_DIVISOR)


@compiled
def patched_range(
    weight_gR: Floats, pivots_g: Floats, top: Float, symmetric: bool, threshold_R: Floats, lo_R: Floats, hi_R: Floats
) -> None:
    """Write smallest and largest weight of each row after its candidates were replaced. top: the largest code."""
    size, num_rows = weight_gR.shape
    weight_gT, values_gT = np.zeros((size, TILE), np.float32), np.zeros((size, TILE), np.float32)
    threshold_T, lo_T, hi_T = np.zeros(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, num_rows, TILE):
        rows = min(TILE, num_rows - start)
        for k in range(size):
            for r in range(rows):
                weight_gT[k, r] = weight_gR[k, start + r]
        for r in range(rows):
            threshold_T[r] = threshold_R[start + r]
        if size > 1:
            _gains(weight_gT, pivots_g, top, symmetric, values_gT)
        else:
            values_gT[:] = 0  # nothing is gained from leaving out a single weight
        _replace(weight_gT, threshold_T, values_gT)
        _range(values_gT, lo_T, hi_T)
        for r in range(rows):
            lo_R[start + r], hi_R[start + r] = lo_T[r], hi_T[r]


@compiled
def _gains(weight_gT: Floats, pivots_g: Floats, top: Float, symmetric: bool, gains_gT: Floats) -> None:
    """Write by how much the group's error falls when a weight is left out."""
    lo_T, next_lo_T, lowest_T = _extremes(weight_gT, ONE)
    hi_T, next_hi_T, highest_T = _extremes(weight_gT, -ONE)
    nothing_T = np.full(TILE, -1, np.int32)
    total_T = _losses(weight_gT, pivots_g, lo_T, hi_T, top, symmetric, nothing_T, gains_gT)
    losses_gT = np.empty_like(gains_gT)
    without_lo_T = _losses(weight_gT, pivots_g, next_lo_T, hi_T, top, symmetric, lowest_T, losses_gT)
    without_hi_T = _losses(weight_gT, pivots_g, lo_T, next_hi_T, top, symmetric, highest_T, losses_gT)
    for r in range(TILE):
        if lo_T[r] < next_lo_T[r]:
            gains_gT[lowest_T[r], r] = total_T[r] - without_lo_T[r]
        if hi_T[r] > next_hi_T[r]:
            gains_gT[highest_T[r], r] = total_T[r] - without_hi_T[r]


@compiled
def _extremes(weight_gT: Floats, sign: Float) -> tuple[Floats, Floats, Integers]:
    """Return the smallest weights (the largest, if sign is -1), the next ones, and in which columns the first are."""
    first_T, second_T, index_T = np.full(TILE, INFINITY), np.full(TILE, INFINITY), np.zeros(TILE, np.int32)
    for k in range(len(weight_gT)):
        for r in range(TILE):
            value, first, second, index = sign * weight_gT[k, r], first_T[r], second_T[r], index_T[r]
            second = value if value < second else second
            index_T[r] = k if value < first else index
            second_T[r] = first if value < first else second
            first_T[r] = value if value < first else first
    for r in range(TILE):
        first_T[r], second_T[r] = sign * first_T[r], sign * second_T[r]
    return first_T, second_T, index_T


@compiled
def _losses(
    weight_gT: Floats,
    pivots_g: Floats,
    lo_T: Floats,
    hi_T: Floats,
    top: Float,
    symmetric: bool,
    left_out_T: Integers,
    losses_gT: Floats,
) -> Floats:
    """Write ((w - q) / d)**2 of all weights on the grid from lo to hi; return their sum without the one left out."""
    scale_T, zero_T = _fit(lo_T, hi_T, top, symmetric)
    total_T = np.zeros(TILE, np.float32)
    for k in range(len(weight_gT)):
        pivot = pivots_g[k]
        for r in range(TILE):
            weight, scale, zero = weight_gT[k, r], scale_T[r], zero_T[r]
            code = np.rint(weight / (SMALLEST_DIVISOR if scale < SMALLEST_DIVISOR else scale) + zero)
            code = ZERO if code < ZERO else code
            code = top if code > top else code
            loss = ((code - zero) * scale - weight) / pivot
            losses_gT[k, r] = loss * loss
        for r in range(TILE):
            loss = losses_gT[k, r]
            total_T[r] += ZERO if left_out_T[r] == k else loss
    return total_T


@compiled
def _fit(lo_T: Floats, hi_T: Floats, top: Float, symmetric: bool) -> tuple[Floats, Floats]:
    """Return scale and zero, as `grid.fit_real_zero`."""
    scale_T, zero_T = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for r in range(TILE):
        lo, hi = lo_T[r], hi_T[r]
        farthest = max(abs(lo), abs(hi))
        if symmetric:
            scale, zero = farthest * TWO / top, (top + ONE) / TWO
            scale = max(scale, SMALLEST_SCALE)
        else:
            far = farthest * top > (hi - lo) * FARTHEST
            lo = ZERO if far and lo > ZERO else lo
            hi = ZERO if far and hi < ZERO else hi
            scale = max((hi - lo) / top, SMALLEST_SCALE)
            zero = -lo / scale
        scale_T[r], zero_T[r] = scale, zero
    return scale_T, zero_T


@compiled
def _replace(weight_gT: Floats, threshold_T: Floats, values_gT: Floats) -> None:
    """Turn gains into weights, but those above the threshold into the mean of the others, 0 if there are none."""
    mean_T, count_T = np.full(TILE, -ZERO), np.zeros(TILE, np.float32)
    for k in range(len(weight_gT)):
        for r in range(TILE):
            weight, count, candidate = weight_gT[k, r], count_T[r], values_gT[k, r] > threshold_T[r]
            mean_T[r] += ZERO if candidate else weight
            count_T[r] = count if candidate else count + ONE
    for r in range(TILE):
        mean_T[r] /= max(count_T[r], ONE)
    for k in range(len(weight_gT)):
        for r in range(TILE):
            weight, mean = weight_gT[k, r], mean_T[r]
            values_gT[k, r] = mean if values_gT[k, r] > threshold_T[r] else weight


@compiled
def _range(values_gT: Floats, lo_T: Floats, hi_T: Floats) -> None:
    lo_T[:], hi_T[:] = INFINITY, -INFINITY
    for k in range(len(values_gT)):
        for r in range(TILE):
            value = values_gT[k, r]
            lo_T[r], hi_T[r] = min(lo_T[r], value), max(hi_T[r], value)
