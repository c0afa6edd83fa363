"""Grids stand for what was fitted, in the bits that are stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitpress_workers.numerics.grid import (
    SMALLEST,
    IntegerZeroGrid,
    RealZeroGrid,
    fit_integer_zero,
    fit_real_zero,
    fit_statistics,
    search_integer_zero,
)
from oracles import textbook

few = settings(max_examples=60, deadline=None, derandomize=True)
weights = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20).map(lambda x: torch.tensor([x]))
bits = st.integers(2, 8)


def fit(w: Tensor, n: int, **options: bool) -> IntegerZeroGrid:
    return fit_integer_zero(*w.aminmax(dim=1, keepdim=True), n, **options)


def fit_real(w: Tensor, n: int, **options: bool) -> RealZeroGrid:
    return fit_real_zero(*w.aminmax(dim=1, keepdim=True), n, **options)


@few
@given(w=weights, n=bits, symmetric=st.booleans())
def test_integer_zero_grid(w: Tensor, n: int, symmetric: bool) -> None:
    grid = fit(w, n, symmetric=symmetric)
    codes = grid.encode(w)
    assert torch.equal(grid.scale, grid.scale.half().float())
    assert float(grid.zero) == int(grid.zero)
    assert 0 <= float(grid.zero) <= 2**n - 1
    assert torch.equal(codes, codes.round().clamp(0, 2**n - 1))
    values = grid.decode(codes)
    assert torch.equal(grid.decode(grid.encode(values)), values)
    assert float(grid.decode(grid.encode(torch.zeros(1, 1)))) == 0
    if not symmetric and float(w.max() - w.min()) > 0.1:
        assert float((values - w).abs().max()) <= float(grid.scale) * (0.5 + 2**n * 2**-10)


@few
@given(w=weights, n=bits, symmetric=st.booleans(), round_zero=st.booleans())
def test_real_zero_grid(w: Tensor, n: int, symmetric: bool, round_zero: bool) -> None:
    grid = fit_real(w, n, symmetric=symmetric, round_zero=round_zero)
    values = grid.decode(grid.encode(w))
    assert bool(torch.isfinite(values).all())
    half_steps = 0.5001 if not symmetric and not round_zero else 1.0001
    resolution = float(w.abs().max()) * 2**-13  # where weights differ by less, the grid reaches from 0
    assert float((values - w).abs().max()) <= max(half_steps * float(grid.scale), resolution) + 1e-6


@few
@given(value=st.floats(-1000, 1000, width=32), n=bits)
def test_constant_weights_are_on_their_grid(value: float, n: int) -> None:
    w = torch.full((1, 5), value)
    for grid in (fit(w, n), fit_real(w, n)):
        assert torch.allclose(grid.decode(grid.encode(w)), w, rtol=1e-3, atol=2**n * 2**-25)


def test_constant_zero_is_exact() -> None:
    w = torch.zeros(2, 4)
    for grid in (fit(w, 3), fit(w, 3, symmetric=True), fit_real(w, 3), fit_real(w, 3, symmetric=True)):
        assert torch.equal(grid.decode(grid.encode(w)), w)


def test_symmetric_grids_use_both_halves_for_rows_without_negative_weights() -> None:
    w = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, -1.0, -2.0, -3.0]])
    grid = fit(w, 4, symmetric=True)
    assert grid.scale.flatten().tolist() == pytest.approx([0.4, 0.4], rel=1e-3)
    assert torch.allclose(grid.decode(grid.encode(w)), w, atol=0.41)


def test_a_scale_never_becomes_zero() -> None:
    w = torch.tensor([[0.0, 1e-9]])
    grid = fit(w, 8)
    assert float(grid.scale) == SMALLEST[torch.float16] == float(torch.tensor(1, dtype=torch.int16).view(torch.float16))


@few
@given(
    values=st.lists(st.floats(2**-10, 10, width=32), min_size=1, max_size=16).map(lambda x: torch.tensor([x])),
    n=st.integers(1, 8),
    sign=st.sampled_from([-1, 1]),
)
def test_statistics_decode_to_about_what_they_were(values: Tensor, n: int, sign: int) -> None:
    grid = fit_statistics(sign * values, n)
    decoded = grid.decode(grid.encode(sign * values))
    step = float(values.max() - values.min()) / (2**n - 1)
    assert float((decoded - sign * values).abs().max()) <= 0.5 * step + 2**-9 * float(values.abs().max()) * 2
    for number in (grid.scale, grid.zero):
        assert torch.equal(number, number.half().float())


@pytest.mark.parametrize("value", [0.0057, -3.0, 1e-4, 0.0])
def test_equal_statistics_decode_to_themselves(value: float) -> None:
    """Published code makes 0.143 of every one of them."""
    values = torch.full((1, 16), value)
    grid = fit_statistics(values, 3)
    assert torch.equal(grid.decode(grid.encode(values)), values.half().float())


def search(w: torch.Tensor, n: int) -> IntegerZeroGrid:
    """Rows in two tiles."""
    return search_integer_zero(w.T.contiguous(), n, tiles=[5, len(w) - 5])


def test_the_search_finds_the_textbook_grid() -> None:
    w = torch.randn(9, 40, generator=torch.Generator().manual_seed(3))
    w[2] = w[2].abs()
    for n in (2, 3, 4):
        grid, oracle = search(w, n), textbook.search_grid_a(w, n, textbook.half_scale)
        assert torch.equal(grid.scale.flatten(), oracle.scale)
        assert torch.equal(grid.zero.flatten(), oracle.zero)


def test_the_search_does_not_worsen_the_norm_it_minimizes() -> None:
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(4))
    plain, searched = fit(w, 3), search(w, 3)
    errors = [
        (grid.decode(grid.encode(x)) - x).abs().pow(2.4).sum(dim=d)
        for grid, x, d in ((plain, w, 1), (searched, w.T, 0))
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-5)).all())
