"""Which device runs which kernels; what has none runs the plain torch forms, which are also the oracles.

Each device's module has the same functions. It is imported when its device is first used:
one needs numba, the other Triton.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from bitpress_workers.numerics import column_solver, grid, leave_one_out
from bitpress_workers.numerics.column_solver import Block, RunSolver
from bitpress_workers.numerics.grid import Grid, IntegerZeroGrid, RealZeroGrid


class Kernels(Protocol):
    """One device's kernels; see the plain forms for shapes and units."""

    def solve_run(self, block: Block, first: int, last: int, grid: Grid) -> None:
        """As `column_solver.solve_run`, bit for bit."""
        ...

    def search_integer_zero(
        self, weight_KR: Tensor, bits: int, *, tiles: Sequence[int], symmetric: bool, scale_dtype: torch.dtype
    ) -> IntegerZeroGrid:
        """As `grid.search_integer_zero`, but for rows where two candidates are equal within float32."""
        ...

    def patched_range(
        self, weight_gR: Tensor, pivots_g: Tensor, bits: int, symmetric: bool, threshold_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `leave_one_out.patched_range`, bit for bit."""
        ...

    def quantize_statistics(
        self, values_R: Tensor, index_TS: Tensor, bits: int, *, scale_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, RealZeroGrid]:
        """As `grid.quantize_statistics`, bit for bit."""
        ...


class _Plain:
    solve_run = staticmethod(column_solver.solve_run)
    search_integer_zero = staticmethod(grid.search_integer_zero)
    patched_range = staticmethod(leave_one_out.patched_range)
    quantize_statistics = staticmethod(grid.quantize_statistics)


def load(device: torch.device) -> Kernels:
    """Import and return a device's kernels; those that nobody loads are loaded by their first use."""
    if device.type == "cpu":
        from bitpress_workers.numerics.kernels import cpu

        return cpu
    if device.type == "cuda":
        from bitpress_workers.numerics.kernels import cuda

        return cuda
    return _Plain()


def run_solver(device: torch.device) -> RunSolver:
    """Return what solves runs of columns on a device."""
    return load(device).solve_run


def search_integer_zero(
    weight_KR: Tensor,
    bits: int,
    *,
    tiles: Sequence[int],
    symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> IntegerZeroGrid:
    """Fit a grid per row by search, on the weights' device; see `grid.search_integer_zero`."""
    find = load(weight_KR.device).search_integer_zero
    return find(weight_KR, bits, tiles=tiles, symmetric=symmetric, scale_dtype=scale_dtype)


def patched_range(
    weight_gR: Tensor, pivots_g: Tensor, bits: int, symmetric: bool, threshold_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the range of a group without its candidates, on the weights' device; see `leave_one_out.patched_range`."""
    return load(weight_gR.device).patched_range(weight_gR, pivots_g, bits, symmetric, threshold_R)


def quantize_statistics(
    values_R: Tensor, index_TS: Tensor, bits: int, *, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, RealZeroGrid]:
    """Put scales or zeros on second-level grids, on their device; see `grid.quantize_statistics`."""
    return load(values_R.device).quantize_statistics(values_R, index_TS, bits, scale_dtype=scale_dtype)
