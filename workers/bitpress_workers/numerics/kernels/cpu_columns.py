"""A run of columns and the second level of its grids, compiled.

In a run, a tile of rows goes through all of its columns while it is in cache.

The reference subtracts a column's error from every later column at once. Here a column takes its
corrections together, when it is its turn, but in the same order, so a weight sees the same roundings.

Shapes as in `column_solver`, T rows of a tile; NumPy arrays, rows without gaps.
"""

import numpy as np

from bitpress_workers.numerics import grid
from bitpress_workers.numerics.grid import MAX_REAL_ZERO
from bitpress_workers.numerics.kernels.cpu_compile import Bools, Bytes, Float, Floats, Integers, compiled

TILE = 256
ZERO, HALF, MINUS_ONE, INFINITY = np.float32(0), np.float32(0.5), np.float32(-1), np.float32(np.inf)
SMALLEST_DIVISOR = np.float32(grid.SMALLEST_DIVISOR)
FARTHEST_ZERO = np.float32(MAX_REAL_ZERO)
SMALLEST_NORMAL_HALF = np.float32(2.0**-14)
FIRST_INFINITE_HALF = np.float32(65520)


@compiled
def solve_run(
    first: int,
    last: int,
    weight_BR: Floats,
    errors_BR: Floats,
    upper_BB: Floats,
    dead_B: Bools,
    codes_BR: Bytes,
    group_B: Integers,
    scale_GR: Floats,
    zero_GR: Floats,
    top: Float,
    real_zero: bool,
    threshold_R: Floats,
    kept_BR: Bools,
    kept_half: bool,
) -> None:
    """Solve columns first .. last - 1 and correct the later ones of the block.

    top: the largest code, float32. threshold_R, kept_BR: of length 0 when there are none.
    """
    num_columns, num_rows = weight_BR.shape
    errors = np.empty((last - first) * TILE, np.float32)  # of the tile, one column after the other
    nothing_T = np.zeros(TILE, np.bool_)
    for start in range(0, num_rows, TILE):
        part = slice(start, min(start + TILE, num_rows))
        for j in range(first, last):
            weight_T, scale_T, zero_T = weight_BR[j, part], scale_GR[group_B[j], part], zero_GR[group_B[j], part]
            kept_T = kept_BR[j, part] if len(kept_BR) else nothing_T
            pivot = upper_BB[j, j]
            _correct(weight_T, errors, upper_BB[first:j, j])
            if len(threshold_R) and not dead_B[j]:
                _find_kept(weight_T, scale_T, zero_T, top, real_zero, pivot, threshold_R[part], kept_T)
            error_T = errors[(j - first) * TILE :]
            _round(weight_T, scale_T, zero_T, top, real_zero, dead_B[j], kept_T, kept_half, codes_BR[j, part], error_T)
            _divide(error_T, pivot, errors_BR[j, part])
        for j in range(last, num_columns):
            _correct(weight_BR[j, part], errors, upper_BB[first:last, j])


@compiled
def _correct(weight_T: Floats, errors: Floats, upper_J: Floats) -> None:
    """Subtract the errors of J columns, one after the other; eight for each time a weight is read and written."""
    rows, count = len(weight_T), len(upper_J)
    eights = count - count % 8
    for i in range(0, eights, 8):
        e = errors[i * TILE : (i + 8) * TILE]
        u0, u1, u2, u3 = upper_J[i], upper_J[i + 1], upper_J[i + 2], upper_J[i + 3]
        u4, u5, u6, u7 = upper_J[i + 4], upper_J[i + 5], upper_J[i + 6], upper_J[i + 7]
        for r in range(rows):
            weight = weight_T[r] - u0 * e[r]
            weight = weight - u1 * e[TILE + r]
            weight = weight - u2 * e[2 * TILE + r]
            weight = weight - u3 * e[3 * TILE + r]
            weight = weight - u4 * e[4 * TILE + r]
            weight = weight - u5 * e[5 * TILE + r]
            weight = weight - u6 * e[6 * TILE + r]
            weight_T[r] = weight - u7 * e[7 * TILE + r]
    for i in range(eights, count):
        u, e = upper_J[i], errors[i * TILE : (i + 1) * TILE]
        for r in range(rows):
            weight_T[r] -= u * e[r]


@compiled
def _find_kept(
    weight_T: Floats,
    scale_T: Floats,
    zero_T: Floats,
    top: Float,
    real_zero: bool,
    pivot: Float,
    threshold_T: Floats,
    kept_T: Bools,
) -> None:
    for r in range(len(weight_T)):
        code = _code(weight_T[r], scale_T[r], zero_T[r], top, real_zero)
        error = (weight_T[r] - (code - zero_T[r]) * scale_T[r]) / pivot
        kept_T[r] = error * error > threshold_T[r]


@compiled
def _round(
    weight_T: Floats,
    scale_T: Floats,
    zero_T: Floats,
    top: Float,
    real_zero: bool,
    dead: bool,
    kept_T: Bools,
    kept_half: bool,
    code_T: Bytes,
    loss_T: Floats,
) -> None:
    """Replace weights by the values they are stored as; loss_T: what they lost."""
    for r in range(len(weight_T)):
        weight, scale, zero = weight_T[r], scale_T[r], zero_T[r]
        code = _code(weight, scale, zero, top, real_zero)
        value = (code - zero) * scale
        if kept_T[r]:
            value = _half(weight) if kept_half else weight
        if dead:
            value = ZERO
        if kept_T[r] or dead:
            code = _code(ZERO, scale, zero, top, real_zero)
        code_T[r] = np.uint8(np.int32(code))
        loss_T[r] = weight - value
        weight_T[r] = value


@compiled
def _divide(error_T: Floats, pivot: Float, out_T: Floats) -> None:
    for r in range(len(out_T)):
        error_T[r] = error_T[r] / pivot
        out_T[r] = error_T[r]


@compiled
def quantize_statistics(
    values_R: Floats,
    index_TS: Integers,
    top: Float,
    half: bool,
    smallest_scale: Float,
    codes_R: Bytes,
    decoded_R: Floats,
    scale_T: Floats,
    zero_T: Floats,
) -> None:
    """Put the numbers of each tile on a grid; see `grid.fit_statistics`."""
    num_tiles, size = index_TS.shape
    for t in range(num_tiles):
        lo, hi = INFINITY, -INFINITY
        for s in range(size):
            lo, hi = min(lo, values_R[index_TS[t, s]]), max(hi, values_R[index_TS[t, s]])
        scale = (hi - lo) / top
        scale = max(_half(scale) if half else scale, smallest_scale)
        zero = _half(-lo / scale) if half else -lo / scale
        if hi == lo or abs(zero) > FARTHEST_ZERO:
            scale, zero = _half(lo) if half else lo, MINUS_ONE
        for s in range(size):
            r = index_TS[t, s]
            code = _code(values_R[r], scale, zero, top, True)
            codes_R[r], decoded_R[r] = np.uint8(np.int32(code)), (code - zero) * scale
        scale_T[t], zero_T[t] = scale, zero


@compiled
def _code(weight: Float, scale: Float, zero: Float, top: Float, real_zero: bool) -> Float:
    """Return the nearest code, whole float32: `RealZeroGrid.encode` or `IntegerZeroGrid.encode`."""
    if real_zero:
        divisor = SMALLEST_DIVISOR if scale < SMALLEST_DIVISOR else scale
        code = np.rint(weight / divisor + zero)
    else:
        code = np.rint(weight / scale) + zero
    code = ZERO if code < ZERO else code
    return top if code > top else code


@compiled
def _half(weight: Float) -> Float:
    """Round float32 to float16 and back, ties to even; beyond float16's range to infinity."""
    bits = np.float32(weight).view(np.int32)
    magnitude = abs(weight)
    normal = np.int32((bits & 0x7FFFFFFF) + 0xFFF + ((bits >> 13) & 1) & ~0x1FFF).view(np.float32)
    subnormal = (magnitude + HALF) - HALF  # between 0.5 and 1, float32 resolves 2**-24
    rounded = subnormal if magnitude < SMALLEST_NORMAL_HALF else normal
    rounded = INFINITY if magnitude >= FIRST_INFINITE_HALF else rounded
    return -rounded if bits < 0 else rounded
