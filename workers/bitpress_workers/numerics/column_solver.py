"""The column loop of GPTQ, SpQR and SEPTQ: quantize a column, let the later ones make up for its error.

With H^-1 = U'U and columns in order, column j is replaced by values q, and what it lost,
err = (w - q) / U_jj, is subtracted from every later column k as err * U_jk. Within a block of
columns this is done at once, beyond it by one GEMM at the block's end. A method says through
Columns which grids there are and which weights stay as they are.

A column block falls into runs: columns whose grids are known before the first of them is solved.
A run is what a device's kernel solves in one go (`kernels`); `solve_run` here is the plain
reference, which every kernel equals bit for bit.

Bits do not depend on how rows are shared out: within a block only exactly rounded elementwise
operations touch a weight (a multiplication, then a subtraction), and the GEMM runs per row tile, always in
the same shapes.

Weights lie column by column (weight_IR), so that a column is contiguous.
Shapes: I columns (inputs), R rows of this shard, B columns of a block, G grids.
Source: Frantar et al. 2022 (arXiv 2210.17323), Algorithm 1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitpress_workers.numerics.grid import Grid
from bitpress_workers.numerics.precision import full_float32


@dataclass
class Columns:
    """What is to be solved, in solve order, and what comes of it.

    weight_IR: float32 [I, R]; becomes the values that stand for it.
    group_size: columns whose grid is fitted when the first of them is next.
    fit: from the index of a group's first column and its weights [g, R], float32, to its grid,
      scale and zero [R]; or, with group_I, all grids at once, [G, R].
    group_I: int64 [I], the grid of each column; None: all columns of a group are on the grid that was fitted.
    stale: fit sees a group without the corrections of its own column block.
    dead_I: bool [I]; their values are 0.
    threshold_R: float32 [R]; a weight whose err^2 exceeds it is kept.
    kept_IR: bool [I, R], weights that stay as they are, in kept_dtype; found when there is a
      threshold, given otherwise; None: none.
    codes_IR: uint8 [I, R]; that of 0 for a weight that is kept.
    """

    weight_IR: Tensor
    group_size: int
    fit: Callable[[int, Tensor], Grid]
    dead_I: Tensor
    codes_IR: Tensor
    group_I: Tensor | None = None
    stale: bool = False
    threshold_R: Tensor | None = None
    kept_IR: Tensor | None = None
    kept_dtype: torch.dtype = torch.float16


@dataclass(frozen=True)
class Block:
    """Consecutive columns of Columns, [B, ...], with their part of U; errors_BR receives err."""

    weight_BR: Tensor
    errors_BR: Tensor
    upper_BB: Tensor
    dead_B: Tensor
    codes_BR: Tensor
    group_B: Tensor | None
    threshold_R: Tensor | None
    kept_BR: Tensor | None
    kept_dtype: torch.dtype


RunSolver = Callable[[Block, int, int, Grid], None]


@full_float32()
def solve_columns(
    columns: Columns, upper_II: Tensor, *, column_block: int, tiles: Sequence[int], solve_run: RunSolver
) -> None:
    """Quantize all columns in order, in place.

    upper_II: float32, of `hessian.factorize`, columns in the same order.
    tiles: rows of each GEMM, in order; together R.
    """
    num_columns, num_rows = columns.weight_IR.shape
    errors = columns.weight_IR.new_empty(min(column_block, num_columns), num_rows)
    for first in range(0, num_columns, column_block):
        last = min(first + column_block, num_columns)
        block = _block(columns, upper_II, errors[: last - first], first, last)
        before_BR = block.weight_BR.clone() if columns.stale else None
        for start, stop in _runs(first, last, columns.group_size):
            if start % columns.group_size == 0:
                grid = columns.fit(start, _group(columns, start, first, before_BR))
            solve_run(block, start - first, stop - first, grid)
        _update_rest(columns.weight_IR[last:], block.errors_BR, upper_II[first:last, last:], tiles)


def _runs(first: int, last: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Cut a block's columns where groups begin."""
    start = first
    while start < last:
        stop = min(last, start + group_size - start % group_size)
        yield start, stop
        start = stop


def _group(columns: Columns, start: int, block_first: int, before_BR: Tensor | None) -> Tensor:
    """Return a group's weights as they are now, or as they were when the block that starts the group began."""
    if before_BR is not None and columns.group_size <= len(before_BR):
        return before_BR[start - block_first : start - block_first + columns.group_size]
    return columns.weight_IR[start : start + columns.group_size]


def _block(columns: Columns, upper_II: Tensor, errors_BR: Tensor, first: int, last: int) -> Block:
    part = slice(first, last)
    return Block(
        weight_BR=columns.weight_IR[part],
        errors_BR=errors_BR,
        upper_BB=upper_II[part, part].contiguous(),
        dead_B=columns.dead_I[part],
        codes_BR=columns.codes_IR[part],
        group_B=None if columns.group_I is None else columns.group_I[part],
        threshold_R=columns.threshold_R,
        kept_BR=None if columns.kept_IR is None else columns.kept_IR[part],
        kept_dtype=columns.kept_dtype,
    )


def solve_run(block: Block, first: int, last: int, grid: Grid) -> None:
    """Solve columns first .. last - 1 of a block, correcting all later columns of the block: the reference."""
    weights, errors, codes = block.weight_BR.unbind(), block.errors_BR.unbind(), block.codes_BR.unbind()
    dead = block.dead_B.tolist()
    groups = None if block.group_B is None else block.group_B.tolist()
    pivots = block.upper_BB.diagonal().clone().split(1)
    for i in range(first, last):
        column_grid = grid if groups is None else grid[groups[i]]
        values_R = _quantize(block, i, weights[i], codes[i], column_grid, pivots[i], dead[i])
        torch.sub(weights[i], values_R, out=errors[i]).div_(pivots[i])
        weights[i].copy_(values_R)
        block.weight_BR[i + 1 :].sub_(block.upper_BB[i, i + 1 :, None] * errors[i])


def _quantize(block: Block, i: int, weight_R: Tensor, code_R: Tensor, grid: Grid, pivot: Tensor, dead: bool) -> Tensor:
    """Write column i's codes and which weights it keeps; return its values, float32 [R]."""
    if dead:
        code_R.copy_(grid.encode(torch.zeros_like(weight_R)))
        return torch.zeros_like(weight_R)
    codes_R = grid.encode(weight_R)
    values_R = grid.decode(codes_R)
    if block.threshold_R is not None and block.kept_BR is not None:
        error_R = torch.sub(weight_R, values_R).div_(pivot)
        torch.gt(error_R.square_(), block.threshold_R, out=block.kept_BR[i])
    if block.kept_BR is not None:
        codes_R = torch.where(block.kept_BR[i], grid.encode(torch.zeros_like(weight_R)), codes_R)
        values_R = torch.where(block.kept_BR[i], weight_R.to(block.kept_dtype).float(), values_R)
    code_R.copy_(codes_R)
    return values_R


def _update_rest(rest_KR: Tensor, errors_BR: Tensor, upper_BK: Tensor, tiles: Sequence[int]) -> None:
    """Subtract a block's errors from all later columns, one GEMM of fixed shape per row tile."""
    if not rest_KR.numel():
        return
    upper_BK = upper_BK.contiguous()
    for rest_KT, errors_BT in zip(rest_KR.split(list(tiles), 1), errors_BR.split(list(tiles), 1), strict=True):
        rest_KT -= upper_BK.T @ errors_BT.contiguous()
