"""SpQR's second level in one launch: `grid.quantize_statistics` as a Triton kernel.

A thread takes the rows of one second-level tile, once for their range and once for their codes. The bits
are those of the plain form on a CPU. (On a GPU torch divides by a plain number with its reciprocal.)

Shapes: R rows, T tiles of S rows each, P tiles of a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitpress_workers.numerics.grid import MAX_REAL_ZERO, SMALLEST, RealZeroGrid
from bitpress_workers.numerics.kernels.cuda_arithmetic import TRITON_DTYPES, encode

TILES = 32  # of a program, one a thread
FARTHEST_ZERO = tl.constexpr(MAX_REAL_ZERO)


def quantize_statistics(
    values_R: Tensor, index_TS: Tensor, bits: int, *, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, RealZeroGrid]:
    """Put scales or zeros on second-level grids, one for each tile of rows; see `grid.quantize_statistics`."""
    num_tiles, tile_size = index_TS.shape
    codes_R, decoded_R = torch.empty_like(values_R, dtype=torch.uint8), torch.empty_like(values_R)
    scale_T, zero_T = values_R.new_empty(2, num_tiles)
    with torch.cuda.device_of(values_R):  # Triton launches on the current device
        _quantize_statistics[(triton.cdiv(num_tiles, TILES),)](
            values_R.contiguous(),
            index_TS.contiguous(),
            codes_R,
            decoded_R,
            scale_T,
            zero_T,
            num_tiles,
            tile_size,
            MAX_CODE=2**bits - 1,
            STORED=TRITON_DTYPES[scale_dtype],
            SMALLEST_SCALE=SMALLEST[scale_dtype],
            TILES=TILES,
            num_warps=TILES // 32,
            num_stages=1,
            enable_fp_fusion=False,
        )
    return codes_R, decoded_R, RealZeroGrid(scale_T, zero_T, bits)


@triton.jit(do_not_specialize=["num_tiles", "tile_size"])
def _quantize_statistics(
    values,
    index,
    codes,
    decoded,
    scales,
    zeros,
    num_tiles,
    tile_size,
    MAX_CODE: tl.constexpr,
    STORED: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    TILES: tl.constexpr,
):
    tiles = tl.program_id(0) * TILES + tl.arange(0, TILES)
    inside = tiles < num_tiles
    low_P = tl.full([TILES], float("inf"), tl.float32)
    high_P = -low_P
    for position in range(tile_size):
        row_P = tl.load(index + tiles * tile_size + position, mask=inside, other=0)
        value_P = tl.load(values + row_P, mask=inside, other=0.0)
        low_P, high_P = tl.minimum(low_P, value_P), tl.maximum(high_P, value_P)

    scale_P = tl.div_rn(high_P - low_P, MAX_CODE * 1.0).to(STORED).to(tl.float32)
    scale_P = tl.maximum(scale_P, SMALLEST_SCALE)
    zero_P = tl.div_rn(-low_P, scale_P).to(STORED).to(tl.float32)
    same_P = (high_P == low_P) | (tl.abs(zero_P) > FARTHEST_ZERO)
    scale_P = tl.where(same_P, low_P.to(STORED).to(tl.float32), scale_P)
    zero_P = tl.where(same_P, -1.0, zero_P)
    tl.store(scales + tiles, scale_P, mask=inside)
    tl.store(zeros + tiles, zero_P, mask=inside)

    for position in range(tile_size):
        row_P = tl.load(index + tiles * tile_size + position, mask=inside, other=0)
        value_P = tl.load(values + row_P, mask=inside, other=0.0)
        code_P = encode(value_P, scale_P, zero_P, MAX_CODE, True)
        tl.store(codes + row_P, code_P.to(tl.uint8), mask=inside)
        tl.store(decoded + row_P, (code_P - zero_P) * scale_P, mask=inside)
