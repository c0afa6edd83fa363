"""The grid search, compiled: a row meets all candidates while it is in cache, and no temporary is larger than LANES.

|e|**2.4 is (e*e)**(6/5): with a = e*e, y near a**(-1/5), got from a's bits, and r = 1 - a * y**5, it
is (a * y**2)**2 * (1 - r)**(-4/5), and a polynomial in r stands for the last factor.

A row's errors are added in an order that depends on nothing but their number.

Shapes: K columns, R rows, S candidates.
"""

import numpy as np

from bitpress_workers.numerics.kernels.cpu_compile import Float, Floats, Integers, compiled

LANES = 32
ROWS = 16  # rows that are brought into cache together: one cache line of each column

ZERO, ONE, FIFTH = np.float32(0), np.float32(1), np.float32(0.2)
# The bits of the first guess are GUESS - bits(a) / 5; it keeps r between -0.156 and 0.156, where the
# polynomial of (1 - r)**(-4/5) is within 2.7e-7 of it (least maximum of the relative error).
GUESS = 0x4C2B4000
Q0, Q1, Q2 = np.float32(1.0000002695642864), np.float32(0.8000004941194958), np.float32(0.7197993601726255)
Q3, Q4, Q5 = np.float32(0.6717665275119789), np.float32(0.6604063460141886), np.float32(0.6355232474305029)


@compiled
def search(weight_KR: Floats, scale_SR: Floats, zero_SR: Floats, top: Float) -> Integers:
    """Return each row's candidate with the smallest error, the first of equals, int64 [R]. top: the largest code."""
    num_columns, num_rows = weight_KR.shape
    best_R = np.zeros(num_rows, np.int64)
    rows_K = np.empty((ROWS, num_columns), np.float32)
    sums = np.empty(LANES, np.float32)
    for start in range(0, num_rows, ROWS):
        stop = min(start + ROWS, num_rows)
        for k in range(num_columns):
            for r in range(start, stop):
                rows_K[r - start, k] = weight_KR[k, r]
        for r in range(start, stop):
            best_R[r] = _search_row(rows_K[r - start], scale_SR[:, r], zero_SR[:, r], top, sums)
    return best_R


@compiled
def _search_row(row_K: Floats, scale_S: Floats, zero_S: Floats, top: Float, sums: Floats) -> int:
    best, least = 0, np.inf
    for step in range(len(scale_S)):
        error = _error(row_K, scale_S[step], zero_S[step], top, sums)
        if error < least:  # never, where a scale was too large for its type
            best, least = step, error
    return best


@compiled
def _error(row_K: Floats, scale: Float, zero: Float, top: Float, sums: Floats) -> float:
    """Return the sum of |w - q|**2.4."""
    low, high = -zero, top - zero
    sums[:] = ZERO
    for start in range(0, len(row_K), LANES):
        part = row_K[start : start + LANES]
        for k in range(len(part)):
            whole = np.rint(part[k] / scale)
            whole = low if whole < low else whole
            whole = high if whole > high else whole
            sums[k] += _power(whole * scale - part[k])
    return _sum(sums)


@compiled
def _power(error: Float) -> Float:
    """Return |error|**2.4 within a few units in the last place."""
    a = np.float32(error * error)
    y = np.int32(GUESS - np.int32(np.float32(a.view(np.int32)) * FIFTH)).view(np.float32)
    y2 = y * y
    u = a * y2
    r = ONE - u * (y2 * y)
    return u * u * (Q0 + r * (Q1 + r * (Q2 + r * (Q3 + r * (Q4 + r * Q5)))))


@compiled
def _sum(sums: Floats) -> float:
    """Add up by halves."""
    width = LANES // 2
    while width:
        for k in range(width):
            sums[k] += sums[k + width]
        width //= 2
    return np.float64(sums[0])
