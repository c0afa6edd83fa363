"""A run of columns solved in one launch: `column_solver.solve_run` as a Triton kernel, bit for bit.

A program holds a tile of rows, a thread one row. It looks left: a column first takes what all columns
before it have lost, one after the other in their order (the same roundings as when each column corrects
all later ones), and only then is quantized. So every weight of the block is read and written once; the
run's errors, which the caller wants anyway, and U[b:e, b:e] (64 KiB at 128 columns) are read again from
the first-level cache.

Shapes: as in `column_solver`; T rows of a tile.
"""

import torch
import triton
import triton.language as tl

from bitpress_workers.numerics.column_solver import Block
from bitpress_workers.numerics.grid import Grid, RealZeroGrid
from bitpress_workers.numerics.kernels.cuda_arithmetic import TRITON_DTYPES, encode

TILE = 32  # rows of a program, one a thread; few, so that the rows of one linear reach all multiprocessors
UNROLL = tl.constexpr(8)  # columns whose errors are loaded at once


def solve_run(block: Block, first: int, last: int, grid: Grid) -> None:
    """Solve columns first .. last - 1 of a block, correcting all later columns of the block.

    See `column_solver.solve_run`; every tensor of the block is contiguous.
    """
    num_columns, num_rows = block.weight_BR.shape
    tensors = (block.weight_BR, block.errors_BR, block.codes_BR, block.upper_BB, block.kept_BR)
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    with torch.cuda.device_of(block.weight_BR):  # Triton launches on the current device
        _solve_run[(triton.cdiv(num_rows, TILE),)](
            block.weight_BR,
            block.errors_BR,
            block.codes_BR,
            block.upper_BB,
            block.dead_B,
            grid.scale.contiguous(),
            grid.zero.contiguous(),
            block.group_B,
            block.threshold_R if block.kept_BR is not None else None,
            block.kept_BR,
            first,
            last,
            num_columns,
            num_rows,
            REAL_ZERO=isinstance(grid, RealZeroGrid),
            MAX_CODE=2**grid.bits - 1,
            KEPT_DTYPE=TRITON_DTYPES[block.kept_dtype],
            TILE=TILE,
            num_warps=TILE // 32,
            num_stages=1,
            enable_fp_fusion=False,
        )


@triton.jit
def _corrected(weights, errors, upper, column, first, stop, num_columns, stride, rows, inside):
    """Return a column's weights [T] less what columns first .. stop - 1 have lost."""
    weight_T = tl.load(weights + column * stride + rows, mask=inside, other=0.0)
    for earlier in tl.range(first, stop, loop_unroll_factor=UNROLL):
        error_T = tl.load(errors + earlier * stride + rows, mask=inside, other=0.0)
        weight_T -= tl.load(upper + earlier * num_columns + column) * error_T
    return weight_T


@triton.jit(do_not_specialize=["first", "last", "num_columns", "num_rows"])
def _solve_run(
    weights,
    errors,
    codes,
    upper,
    dead,
    scales,
    zeros,
    groups,
    thresholds,
    kept,
    first,
    last,
    num_columns,
    num_rows,
    REAL_ZERO: tl.constexpr,
    MAX_CODE: tl.constexpr,
    KEPT_DTYPE: tl.constexpr,
    TILE: tl.constexpr,
):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = rows < num_rows
    stride = num_rows.to(tl.int64)
    nothing_T = tl.full([TILE], 0.0, tl.float32)
    for column in range(first, last):
        weight_T = _corrected(weights, errors, upper, column, first, column, num_columns, stride, rows, inside)
        here = column * stride + rows
        pivot = tl.load(upper + column * num_columns + column)
        is_dead = tl.load(dead + column)
        grid_at = rows
        if groups is not None:
            grid_at = tl.load(groups + column) * stride + rows
        scale_T = tl.load(scales + grid_at, mask=inside, other=1.0)
        zero_T = tl.load(zeros + grid_at, mask=inside, other=0.0)
        code_T = encode(weight_T, scale_T, zero_T, MAX_CODE, REAL_ZERO)
        code_of_zero_T = encode(nothing_T, scale_T, zero_T, MAX_CODE, REAL_ZERO)
        value_T = (code_T - zero_T) * scale_T
        if kept is not None:
            if thresholds is not None:
                lost_T = tl.div_rn(weight_T - value_T, pivot)
                keep_T = lost_T * lost_T > tl.load(thresholds + rows, mask=inside, other=0.0)
                tl.store(kept + here, keep_T, mask=inside & ~is_dead)
            else:
                keep_T = tl.load(kept + here, mask=inside, other=0)
            code_T = tl.where(keep_T, code_of_zero_T, code_T)
            value_T = tl.where(keep_T, weight_T.to(KEPT_DTYPE).to(tl.float32), value_T)
        value_T = tl.where(is_dead, nothing_T, value_T)
        tl.store(codes + here, tl.where(is_dead, code_of_zero_T, code_T).to(tl.uint8), mask=inside)
        tl.store(errors + here, tl.div_rn(weight_T - value_T, pivot), mask=inside)
        tl.store(weights + here, value_T, mask=inside)
        tl.debug_barrier()  # errors are read again, by whichever thread
    for column in range(last, num_columns):
        weight_T = _corrected(weights, errors, upper, column, first, last, num_columns, stride, rows, inside)
        tl.store(weights + column * stride + rows, weight_T, mask=inside)
