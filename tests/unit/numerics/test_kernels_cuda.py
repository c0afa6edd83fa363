"""The Triton kernels are their plain forms: on the GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from bitpress_workers.numerics import column_solver, grid, leave_one_out
from bitpress_workers.numerics.column_solver import Block
from bitpress_workers.numerics.grid import Grid, IntegerZeroGrid, RealZeroGrid, stack

if not torch.cuda.is_available():
    triton.knobs.runtime.interpret = True  # read when the kernels' module is imported

from bitpress_workers.numerics.kernels import cuda
from bitpress_workers.numerics.kernels.cuda_search import search_errors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_device(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def a_block(num_columns: int, num_rows: int, **fields: Any) -> Block:
    upper_BB = normal(num_columns, num_columns, seed=1).triu() * 0.2
    upper_BB.diagonal().abs_().add_(0.5)
    block: dict[str, Any] = {
        "weight_BR": normal(num_columns, num_rows, seed=2),
        "errors_BR": torch.zeros(num_columns, num_rows),
        "upper_BB": upper_BB,
        "dead_B": torch.zeros(num_columns, dtype=torch.bool),
        "codes_BR": torch.zeros(num_columns, num_rows, dtype=torch.uint8),
        "group_B": None,
        "threshold_R": None,
        "kept_BR": None,
        "kept_dtype": torch.float16,
    }
    return Block(**block | fields)


def moved(block: Block) -> Block:
    """A copy on the device."""
    return Block(
        **{
            name: on_device(value.clone() if isinstance(value, Tensor) else value)
            for name, value in vars(block).items()
        }
    )


def a_grid(num_rows: int, bits: int, *, real_zero: bool, seed: int = 3) -> Grid:
    scale_R = normal(num_rows, seed=seed).abs() * 0.2 + 0.05
    zero_R = normal(num_rows, seed=seed + 1).abs() + 1
    if real_zero:
        scale_R[0] = 0.0  # as a quantized scale may be
        return RealZeroGrid(scale_R, zero_R, bits)
    return IntegerZeroGrid(scale_R, zero_R.round(), bits)


def check(block: Block, first: int, last: int, grid: Grid) -> None:
    found = moved(block)
    cuda.solve_run(found, first, last, type(grid)(on_device(grid.scale), on_device(grid.zero), grid.bits))
    column_solver.solve_run(block, first, last, grid)
    for name, expected in vars(block).items():
        if isinstance(expected, Tensor):
            assert torch.equal(getattr(found, name).cpu(), expected), name


@pytest.mark.parametrize("real_zero", [False, True])
@pytest.mark.parametrize(
    ("num_columns", "num_rows", "first", "last"), [(1, 1, 0, 1), (7, 33, 0, 7), (24, 40, 8, 16), (24, 64, 16, 24)]
)
def test_a_run(num_columns: int, num_rows: int, first: int, last: int, real_zero: bool) -> None:
    check(a_block(num_columns, num_rows), first, last, a_grid(num_rows, 3, real_zero=real_zero))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_width_of_code(bits: int) -> None:
    check(a_block(6, 20), 0, 6, a_grid(20, bits, real_zero=bits == 4))


def test_a_table_of_grids() -> None:
    grids = stack([a_grid(34, 2, real_zero=False, seed=seed) for seed in range(3)])  # type: ignore[misc]
    check(a_block(9, 34, group_B=torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1])), 3, 9, grids)


@pytest.mark.parametrize("kept_dtype", [torch.float16, torch.float32])
def test_given_weights_are_kept(kept_dtype: torch.dtype) -> None:
    kept_BR = normal(8, 40, seed=5) > 1
    check(a_block(8, 40, kept_BR=kept_BR, kept_dtype=kept_dtype), 0, 8, a_grid(40, 3, real_zero=False))


def test_weights_that_err_too_much_are_kept() -> None:
    block = a_block(8, 40, kept_BR=torch.zeros(8, 40, dtype=torch.bool), threshold_R=torch.full((40,), 0.05))
    check(block, 0, 8, a_grid(40, 3, real_zero=True))
    assert block.kept_BR is not None
    assert 0 < int(block.kept_BR.sum()) < 8 * 40


@pytest.mark.parametrize("threshold", [None, 1e-4])
def test_dead_columns(threshold: float | None) -> None:
    block = a_block(6, 10, kept_BR=torch.ones(6, 10, dtype=torch.bool))
    block.dead_B[[0, 4]] = True
    threshold_R = None if threshold is None else torch.full((10,), threshold)
    check(Block(**vars(block) | {"threshold_R": threshold_R}), 0, 6, a_grid(10, 3, real_zero=True))


def test_ties_are_rounded_to_even() -> None:
    weight_BR = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9]])
    grid = IntegerZeroGrid(torch.ones(7), torch.full((7,), 2.0), 3)
    block = a_block(1, 7, weight_BR=weight_BR, upper_BB=torch.ones(1, 1))
    check(block, 0, 1, grid)
    assert block.codes_BR.tolist() == [[2, 4, 4, 2, 0, 7, 0]]


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")  # only numpy warns
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("num_columns", "num_rows", "bits"), [(1, 3, 3), (150, 40, 2), (64, 5, 4)])
def test_the_search_finds_the_same_grids(num_columns: int, num_rows: int, bits: int, symmetric: bool) -> None:
    weight_KR = normal(num_columns, num_rows, seed=bits)
    weight_KR[:, 0] = 0.0
    options: dict[str, Any] = {"symmetric": symmetric, "scale_dtype": torch.float16}
    expected = grid.search_integer_zero(weight_KR, bits, tiles=[num_rows], **options)
    found = cuda.search_integer_zero(on_device(weight_KR), bits, tiles=[num_rows], **options)
    assert torch.equal(found.scale.cpu(), expected.scale)
    assert torch.equal(found.zero.cpu(), expected.zero)


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")
def test_a_rows_error_is_its_own() -> None:
    """The same bits whatever rows lie beside it."""
    weight_KR = on_device(normal(140, 50, seed=9))
    scale_CR = on_device(normal(80, 50, seed=10).abs() + 0.1)
    whole = search_errors(weight_KR, IntegerZeroGrid(scale_CR, torch.ones_like(scale_CR), 3))
    for rows in (slice(0, 17), slice(17, 50)):
        scale_CT = scale_CR[:, rows].contiguous()
        part = search_errors(weight_KR[:, rows].contiguous(), IntegerZeroGrid(scale_CT, torch.ones_like(scale_CT), 3))
        assert torch.equal(part, whole[:, rows])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [1, 2, 3, 16, 21])
def test_leave_one_out(group_size: int, symmetric: bool) -> None:
    """With ties: whole numbers, constant groups, and thresholds that make candidates of none, some, and all."""
    weight_gR = normal(group_size, 90, seed=group_size)
    weight_gR[:, :30] = (weight_gR[:, :30] * 2).round()
    weight_gR[:, 30:33] = torch.tensor([0.0, 1.5, -2.0])
    pivots_g = normal(group_size, seed=7).abs() + 0.5
    threshold_R = torch.tensor([0.0, 0.02, 1e9]).repeat(30)
    expected = leave_one_out.patched_range(weight_gR, pivots_g, 3, symmetric, threshold_R)
    found = cuda.patched_range(*map(on_device, (weight_gR, pivots_g)), 3, symmetric, on_device(threshold_R))
    for found_R, expected_R in zip(found, expected, strict=True):
        assert torch.equal(found_R.cpu(), expected_R)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # only numpy warns
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tile_size", [1, 3, 16])
def test_second_level_statistics(tile_size: int, scale_dtype: torch.dtype) -> None:
    values_R = normal(41 * tile_size, seed=tile_size)
    values_R[:tile_size] = 0.3  # a tile of equals
    values_R[tile_size : 2 * tile_size] = torch.linspace(1, 1.00001, tile_size)  # closer than 16 bits resolve
    index_TS = torch.arange(len(values_R)).view(-1, tile_size)
    index_TS[-1] = index_TS[-1, 0]  # a short last tile names a row more than once
    values_R = values_R[: int(index_TS.max()) + 1]
    expected = grid.quantize_statistics(values_R, index_TS, 3, scale_dtype=scale_dtype)
    found = cuda.quantize_statistics(on_device(values_R), on_device(index_TS), 3, scale_dtype=scale_dtype)
    for found_tensor, expected_tensor in zip(
        (*found[:2], found[2].scale, found[2].zero), (*expected[:2], expected[2].scale, expected[2].zero), strict=True
    ):
        assert torch.equal(found_tensor.cpu(), expected_tensor)


COMPILE = Path(__file__).parents[2] / "support" / "compile_kernels.py"


def test_every_kernel_compiles_for_hopper() -> None:
    """To machine code, without a device; no product is fused with a sum and no division approximated."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(COMPILE)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    kernels = {line.split()[0] for line in result.stdout.splitlines()}
    assert kernels == {"_solve_run", "_search_errors", "_patched_range", "_quantize_statistics"}
