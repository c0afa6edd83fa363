"""The kernels of CPUs: torch tensors in, NumPy views of the same memory to the compiled loops.

A device is one core, so nothing here starts threads; the loops hold no lock of Python's, and shards
that are threads of one process run side by side.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bitpress_workers.numerics.column_solver import Block
from bitpress_workers.numerics.grid import SMALLEST, Grid, IntegerZeroGrid, RealZeroGrid, candidate_grids, chosen
from bitpress_workers.numerics.kernels import cpu_columns, cpu_ranges, cpu_search

NO_THRESHOLD, NOTHING_KEPT = np.empty(0, np.float32), np.empty((0, 0), np.bool_)


def solve_run(block: Block, first: int, last: int, grid: Grid) -> None:
    """As `column_solver.solve_run`, bit for bit."""
    num_columns, num_rows = block.weight_BR.shape
    scale_GR, zero_GR = (x.expand(1, num_rows) if x.ndim == 1 else x for x in (grid.scale, grid.zero))
    cpu_columns.solve_run(
        first,
        last,
        block.weight_BR.numpy(),
        block.errors_BR.numpy(),
        block.upper_BB.numpy(),
        block.dead_B.numpy(),
        block.codes_BR.numpy(),
        np.zeros(num_columns, np.int64) if block.group_B is None else block.group_B.numpy(),
        scale_GR.numpy(),
        zero_GR.numpy(),
        _top(grid.bits),
        isinstance(grid, RealZeroGrid),
        NO_THRESHOLD if block.threshold_R is None else block.threshold_R.numpy(),
        NOTHING_KEPT if block.kept_BR is None else block.kept_BR.numpy(),
        block.kept_dtype == torch.float16,
    )


def search_integer_zero(
    weight_KR: Tensor, bits: int, *, tiles: Sequence[int], symmetric: bool, scale_dtype: torch.dtype
) -> IntegerZeroGrid:
    """As `grid.search_integer_zero`; sums are more exact here, and no row's depends on its tile."""
    candidates = candidate_grids(weight_KR, bits, symmetric, scale_dtype)
    found_R = cpu_search.search(
        weight_KR.contiguous().numpy(), candidates.scale.numpy(), candidates.zero.numpy(), _top(bits)
    )
    return chosen(candidates, torch.from_numpy(found_R))


def patched_range(
    weight_gR: Tensor, pivots_g: Tensor, bits: int, symmetric: bool, threshold_R: Tensor
) -> tuple[Tensor, Tensor]:
    """As `leave_one_out.patched_range`, bit for bit."""
    range_2R = weight_gR.new_empty(2, weight_gR.shape[1])
    cpu_ranges.patched_range(
        weight_gR.numpy(), pivots_g.numpy(), _top(bits), symmetric, threshold_R.numpy(), *range_2R.numpy()
    )
    return range_2R[0], range_2R[1]


def quantize_statistics(
    values_R: Tensor, index_TS: Tensor, bits: int, *, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, RealZeroGrid]:
    """As `grid.quantize_statistics`, bit for bit."""
    codes_R, decoded_R = torch.empty_like(values_R, dtype=torch.uint8), torch.empty_like(values_R)
    grid = RealZeroGrid(values_R.new_empty(len(index_TS)), values_R.new_empty(len(index_TS)), bits)
    cpu_columns.quantize_statistics(
        values_R.numpy(),
        index_TS.numpy(),
        _top(bits),
        scale_dtype == torch.float16,
        np.float32(SMALLEST[scale_dtype]),
        codes_R.numpy(),
        decoded_R.numpy(),
        grid.scale.numpy(),
        grid.zero.numpy(),
    )
    return codes_R, decoded_R, grid


def _top(bits: int) -> np.float32:
    return np.float32(2**bits - 1)
