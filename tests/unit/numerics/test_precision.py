"""Products are computed in float32 whatever the process chose, and what it chose is put back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from bitpress_workers.numerics.column_solver import Columns, solve_columns, solve_run
from bitpress_workers.numerics.grid import Grid, fit_real_zero
from bitpress_workers.numerics.precision import full_float32


@pytest.fixture(autouse=True)
def chosen() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def test_it_is_put_back() -> None:
    with full_float32(), full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"


def test_the_column_loop_is_in_full_float32() -> None:
    seen: list[str] = []

    def fit(first: int, weight_gR: torch.Tensor) -> Grid:
        seen.append(torch.get_float32_matmul_precision())
        return fit_real_zero(*weight_gR.aminmax(dim=0), 3)

    weight_IR = torch.ones(4, 2)
    columns = Columns(weight_IR, 4, fit, torch.zeros(4, dtype=torch.bool), torch.empty(4, 2, dtype=torch.uint8))
    solve_columns(columns, torch.eye(4), column_block=4, tiles=[2], solve_run=solve_run)
    assert seen == ["highest"]


def test_it_is_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == "high"


def test_a_thread_that_leaves_does_not_take_it_from_another() -> None:
    both_in, one_out = Barrier(2), Barrier(2)

    def first() -> None:
        with full_float32():
            both_in.wait()
        one_out.wait()

    def second() -> str:
        with full_float32():
            both_in.wait()
            one_out.wait()
            return torch.get_float32_matmul_precision()

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(function) for function in (first, second)]
        assert found[1].result() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
