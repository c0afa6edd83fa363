"""The column loop carries GPTQ, groups and all, and its bits do not depend on how rows are shared out."""

import pytest
import torch

from bitpress_workers.numerics.column_solver import solve_columns
from bitpress_workers.numerics.hessian import Factor, Gram, factorize
from oracles import textbook
from oracles.examples import random_linear
from oracles.gptq_columns import GPTQColumns


def factor_of(xtx: torch.Tensor, damping: float = 0.01) -> Factor:
    return factorize(Gram(xtx, 2, 1), damping=damping)


@pytest.mark.parametrize(("rows", "columns", "group"), [(24, 40, None), (7, 64, 16), (5, 33, 8), (1, 1, None)])
def test_gptq_is_the_textbook(rows: int, columns: int, group: int | None) -> None:
    weight, xtx = random_linear(rows, columns, seed=rows)
    oracle = textbook.gptq(weight.double(), xtx.double(), 3, group_size=group)
    solved = GPTQColumns.solved(weight, factor_of(xtx), 3, group_size=group, column_block=16)
    assert torch.equal(solved.codes_IR.T.double(), oracle.codes_RI)
    assert solved.loss == pytest.approx(oracle.loss, rel=1e-4)


def test_the_loss_is_the_damped_output_error() -> None:
    weight, xtx = random_linear(12, 50, seed=0)
    solved = GPTQColumns.solved(weight, factor_of(xtx), 4)
    damped = textbook.damp_gptq(xtx, 0.01)
    assert solved.loss == pytest.approx(textbook.damped_error(weight - solved.weight_IR.T, damped), rel=1e-4)


@pytest.mark.parametrize("block", [1, 16, 100, 4096])
def test_the_column_block_changes_only_rounding(block: int) -> None:
    weight, xtx = random_linear(16, 100, seed=1)
    solved = GPTQColumns.solved(weight, factor_of(xtx), 3, column_block=block)
    oracle = textbook.gptq(weight.double(), xtx.double(), 3)
    assert torch.equal(solved.codes_IR.T.double(), oracle.codes_RI)


def test_without_correlations_nothing_is_fed_back() -> None:
    weight, _ = random_linear(8, 20, seed=2)
    solved = GPTQColumns.solved(weight, factor_of(3 * torch.eye(20)), 3)
    assert torch.equal(solved.weight_IR.T, textbook.rtn(weight, 3))


class Kept:
    """Stands for every column as it is."""

    group_size = 4

    def __init__(self) -> None:
        self.groups: list[tuple[int, int]] = []

    def begin_group(self, first: int, weight_KR: torch.Tensor) -> None:
        self.groups.append((first, len(weight_KR)))

    def quantize(self, column: int, weight_R: torch.Tensor) -> torch.Tensor:
        return weight_R.clone()


def test_a_column_that_loses_nothing_changes_nothing() -> None:
    weight, xtx = random_linear(6, 10, seed=3)
    kept, values = Kept(), weight.T.contiguous()
    solve_columns(values, factor_of(xtx).upper_II, kept, column_block=8, row_tile=6)
    assert torch.equal(values, weight.T)
    assert kept.groups == [(0, 10), (4, 6), (8, 2)]


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_of_whole_tiles_give_the_same_bits(shards: int) -> None:
    weight, xtx = random_linear(77, 150, seed=4)
    factor = factor_of(xtx)
    whole = _solve_tiles(weight, factor)
    tiles = list(weight.split(16))
    pieces = [torch.cat(tiles[i * len(tiles) // shards : (i + 1) * len(tiles) // shards]) for i in range(shards)]
    assert torch.equal(torch.cat([_solve_tiles(piece, factor) for piece in pieces]), whole)


def _solve_tiles(weight: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Round to multiples of 0.01; rows in tiles of 16."""

    class Rounded(Kept):
        def quantize(self, column: int, weight_R: torch.Tensor) -> torch.Tensor:
            return torch.round(weight_R * 100) / 100

    values = weight.T.contiguous()
    solve_columns(values, factor.upper_II, Rounded(), column_block=32, row_tile=16)
    return values.T
