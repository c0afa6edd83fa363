"""What several Triton kernels compute alike: codes, exactly as torch computes them.

Nothing here may be fused or approximated: divisions are rounded to nearest (`div_rn`; `/` is not),
kernels are launched with `enable_fp_fusion=False`, so that a product and a sum are rounded one by one.
No function of Triton's own library is used, only builtins, so that the interpreter can be switched on
after Triton was imported.
"""

import torch
import triton
import triton.language as tl

from bitpress_workers.numerics import grid

TRITON_DTYPES = {torch.float16: tl.float16, torch.float32: tl.float32}
# Adding and subtracting 1.5 * 2**23 rounds to a whole number, half to even, below 2**22; what is larger is clamped.
ROUNDER = tl.constexpr(12582912.0)
# A real zero grid's divisor; see `grid.RealZeroGrid.divisor`.
SMALLEST_DIVISOR = tl.constexpr(grid.SMALLEST_DIVISOR)


@triton.jit
def round_half_even(x):
    """Round to whole numbers; numbers beyond 2**22 stay beyond every code."""
    return (x + ROUNDER) - ROUNDER


@triton.jit
def encode(weight, scale, zero, MAX_CODE: tl.constexpr, REAL_ZERO: tl.constexpr):
    """Return the nearest codes, whole float32: `grid.RealZeroGrid.encode` or `grid.IntegerZeroGrid.encode`."""
    if REAL_ZERO:
        code = round_half_even(tl.div_rn(weight, tl.maximum(scale, SMALLEST_DIVISOR)) + zero)
    else:
        code = round_half_even(tl.div_rn(weight, scale)) + zero
    return tl.minimum(tl.maximum(code, 0.0), MAX_CODE)
