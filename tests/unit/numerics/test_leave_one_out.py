"""The shortcut over a group's extremes is the search over all of its weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitpress_workers.numerics.leave_one_out import leave_one_out_gains, replace_candidates
from oracles import textbook


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(-8, 8), min_size=6, max_size=6), min_size=1, max_size=4),
    bits=st.integers(2, 4),
    symmetric=st.booleans(),
)
def test_the_shortcut_is_brute_force(rows: list[list[int]], bits: int, symmetric: bool) -> None:
    """Small whole numbers: many ties for smallest and largest, and groups without any spread."""
    group, pivots = torch.tensor(rows).double() / 4, torch.linspace(0.5, 2, 6).double()
    oracle = textbook.leave_one_out_gains(group, pivots, bits, symmetric=symmetric)
    gains = leave_one_out_gains(group.T, pivots, bits, symmetric)
    assert torch.allclose(gains.T, oracle, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3, 16])
def test_the_shortcut_is_brute_force_on_random_groups(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    group = torch.randn(50, size, generator=generator).double()
    pivots = torch.rand(size, generator=generator).double() + 0.5
    oracle = textbook.leave_one_out_gains(group, pivots, 3)
    assert torch.allclose(leave_one_out_gains(group.T, pivots, 3, symmetric=False).T, oracle, atol=1e-9)


def test_nothing_is_gained_from_leaving_out_a_single_weight() -> None:
    assert leave_one_out_gains(torch.tensor([[3.0, -1.0]]), torch.ones(1), 3, symmetric=False).tolist() == [[0, 0]]


def test_candidates_become_the_mean_of_the_others() -> None:
    group = torch.tensor([[1.0, 5.0], [3.0, 7.0], [80.0, 9.0]])
    candidate = torch.tensor([[False, True], [False, True], [True, True]])
    assert replace_candidates(group, candidate).tolist() == [[1, 0], [3, 0], [2, 0]]
