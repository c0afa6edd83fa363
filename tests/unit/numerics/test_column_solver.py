"""The column loop: groups begin where they should, nothing lost changes nothing, rows are independent."""

import pytest
import torch
from torch import Tensor

from bitpress_workers.numerics.column_solver import Columns, solve_columns, solve_run
from bitpress_workers.numerics.grid import Grid, IntegerZeroGrid, RealZeroGrid, fit_integer_zero, fit_real_zero
from bitpress_workers.numerics.hessian import Factor, Gram, factorize
from oracles import textbook
from oracles.examples import random_linear


def factor_of(xtx: Tensor, damping: float = 0.01) -> Factor:
    return factorize(Gram.of(xtx, 2, 1), damping=damping)


def columns_of(weight: Tensor, group_size: int, grid: Grid | None = None) -> tuple[Columns, list[tuple[int, int]]]:
    """Columns on one grid, or on one fitted per group; and the list of (first column, columns) of each fit."""
    fits: list[tuple[int, int]] = []
    weight_IR = weight.T.contiguous()

    def fit(first: int, weight_gR: Tensor) -> Grid:
        fits.append((first, len(weight_gR)))
        return grid or fit_real_zero(*weight_gR.aminmax(dim=0), 3)

    dead_I = torch.zeros(len(weight_IR), dtype=torch.bool)
    return Columns(weight_IR, group_size, fit, dead_I, torch.empty_like(weight_IR, dtype=torch.uint8)), fits


def solve(columns: Columns, factor: Factor, column_block: int = 32, row_tile: int = 16) -> Tensor:
    tiles = [len(tile) for tile in columns.weight_IR.T.split(row_tile)]
    solve_columns(columns, factor.upper_II, column_block=column_block, tiles=tiles, solve_run=solve_run)
    return columns.weight_IR.T


def test_a_column_that_loses_nothing_changes_nothing() -> None:
    weight, xtx = random_linear(6, 10, seed=3)
    weight = (weight * 100).round().clamp(-100, 100)  # on the grid
    grid = IntegerZeroGrid(torch.ones(6), torch.full((6,), 128.0), bits=8)
    columns, fits = columns_of(weight, 4, grid)
    assert torch.equal(solve(columns, factor_of(xtx), column_block=8), weight)
    assert fits == [(0, 4), (4, 4), (8, 2)]


def test_a_group_may_be_longer_than_a_column_block() -> None:
    weight, xtx = random_linear(6, 40, seed=5)
    columns, fits = columns_of(weight, 16)
    solve(columns, factor_of(xtx), column_block=8)
    assert fits == [(0, 16), (16, 16), (32, 8)]


def test_a_stale_group_is_fitted_without_its_blocks_corrections() -> None:
    weight, xtx = random_linear(6, 32, seed=6)
    seen: list[Tensor] = []
    columns, _ = columns_of(weight, 8)
    plain = columns.fit
    columns.fit = lambda first, weight_gR: (seen.append(weight_gR.clone()), plain(first, weight_gR))[1]
    columns.stale = True
    solve(columns, factor_of(xtx), column_block=16)
    assert torch.equal(seen[1], weight.T[8:16])
    assert not torch.equal(seen[2], weight.T[16:24])  # the block before has corrected it


def test_without_correlations_nothing_is_fed_back() -> None:
    weight, _ = random_linear(8, 20, seed=2)
    grid = fit_integer_zero(*weight.aminmax(dim=1), 3, scale_dtype=torch.float32)
    columns, _ = columns_of(weight, 20, grid)
    assert torch.equal(solve(columns, factor_of(3 * torch.eye(20))), textbook.rtn(weight, 3))


def test_a_kept_weight_stays_and_its_code_is_that_of_zero() -> None:
    weight, xtx = random_linear(8, 24, seed=7)
    columns, _ = columns_of(weight, 8)
    columns.threshold_R = torch.full((8,), 0.02)
    columns.kept_IR = torch.zeros_like(columns.weight_IR, dtype=torch.bool)
    grids: list[RealZeroGrid] = []
    plain = columns.fit

    def fit(first: int, weight_gR: Tensor) -> Grid:
        grids.append(plain(first, weight_gR))  # type: ignore[arg-type]
        return grids[-1]

    columns.fit = fit
    columns.dead_I[3] = True
    values = solve(columns, factor_of(xtx)).T
    assert 0 < int(columns.kept_IR.sum()) < 8 * 24
    assert not columns.kept_IR[3].any()
    assert not values[3].any()
    for i, j in columns.kept_IR.nonzero().tolist():
        assert columns.codes_IR[i, j] == int(grids[i // 8].encode(torch.zeros(8))[j])
        assert values[i, j] == values[i, j].half().float()


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_of_whole_tiles_give_the_same_bits(shards: int) -> None:
    weight, xtx = random_linear(77, 150, seed=4)
    factor = factor_of(xtx)
    whole = solve(columns_of(weight, 16)[0], factor)
    tiles = list(weight.split(16))
    pieces = [torch.cat(tiles[i * len(tiles) // shards : (i + 1) * len(tiles) // shards]) for i in range(shards)]
    assert torch.equal(torch.cat([solve(columns_of(piece, 16)[0], factor) for piece in pieces]), whole)
