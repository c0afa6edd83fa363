"""Whole linears on a GPU: the kernels give the plain loop's bits, at real sizes and however rows are shared out."""

import pytest
import torch
from torch import Tensor

from bitpress.methods import GPTQConfig, MethodConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress, create, gptq, septq, spqr
from bitpress_workers.numerics import column_solver, grid, kernels, leave_one_out
from bitpress_workers.numerics.hessian import Gram
from oracles.examples import random_linear
from oracles.sharding import agree, solve_in_shards

pytestmark = pytest.mark.gpu

ROWS, COLUMNS = 1100, 1500  # neither fills its last tile or block
METHODS: dict[str, MethodConfig] = {
    "gptq": GPTQConfig(bits=3),
    "gptq, groups in activation order": GPTQConfig(bits=4, group_size=128, order="activation"),
    "gptq, static groups": GPTQConfig(bits=2, group_size=64, static_groups=True, order="activation"),
    "gptq, search": GPTQConfig(bits=3, group_size=32, mse_search=True, symmetric=True),
    "spqr": SpQRConfig(),
    "spqr, long groups": SpQRConfig(group_size=256, outlier_threshold=0.05, round_zero=True),
    "spqr, plain statistics": SpQRConfig(scale_bits=None, zero_bits=None, outlier_threshold=None),
    "septq": SEPTQConfig(bits=3),
}


@pytest.fixture(scope="module")
def linear(cuda: torch.device) -> tuple[Tensor, Tensor]:
    weight, hessian = random_linear(ROWS, COLUMNS, seed=1, dead=(7, 900))
    return weight.to(cuda), hessian.to(cuda)


def solved(linear: tuple[Tensor, Tensor], config: MethodConfig) -> dict[str, Tensor]:
    """What is stored of the linear."""
    weight, hessian = linear
    method = create(config)
    rows = method.begin([weight], method.factor(Gram.of(hessian, 2, 1)), method.row_tile(256))
    return next(rows.solve(agree(method, [rows]))).compressed.tensors()


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", METHODS)
def test_the_kernel_is_the_plain_loop(
    linear: tuple[Tensor, Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = solved(linear, METHODS[name])
    for module in (gptq, septq, spqr):
        monkeypatch.setattr(module, "run_solver", lambda device: column_solver.solve_run)
    check_equal(found, solved(linear, METHODS[name]))


@pytest.mark.parametrize("name", METHODS)
def test_shards_give_the_same_bits(linear: tuple[Tensor, Tensor], name: str) -> None:
    whole = solve_in_shards(*linear, METHODS[name], 1)
    check_equal(solve_in_shards(*linear, METHODS[name], 3).tensors(), whole.tensors())


def test_leave_one_out_is_that_of_a_cpu(cuda: torch.device) -> None:
    weight_gR = torch.randn(16, 9216, generator=torch.Generator().manual_seed(2))
    pivots_g, threshold_R = torch.linspace(0.5, 2, 16), torch.full((9216,), 0.02)
    found = kernels.patched_range(weight_gR.to(cuda), pivots_g.to(cuda), 3, False, threshold_R.to(cuda))
    for found_R, expected_R in zip(
        found, leave_one_out.patched_range(weight_gR, pivots_g, 3, False, threshold_R), strict=True
    ):
        assert torch.equal(found_R.cpu(), expected_R)


def test_the_search_finds_the_grids_of_the_plain_search(linear: tuple[Tensor, Tensor]) -> None:
    weight_KR = linear[0].T.contiguous()
    found = kernels.search_integer_zero(weight_KR, 3, tiles=[ROWS])
    expected = grid.search_integer_zero(weight_KR, 3, tiles=[ROWS])
    assert float((found.scale == expected.scale).float().mean()) > 0.999  # all but candidates alike within float32


@pytest.mark.parametrize("name", ["gptq", "spqr", "septq"])
def test_no_bit_depends_on_whether_the_process_chose_tf32(
    linear: tuple[Tensor, Tensor], name: str, request: pytest.FixtureRequest
) -> None:
    expected = compress(*linear, METHODS[name]).tensors()
    request.getfixturevalue("tf32_chosen")
    check_equal(compress(*linear, METHODS[name]).tensors(), expected)
