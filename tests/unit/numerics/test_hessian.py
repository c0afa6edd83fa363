"""Hessians add up in a fixed order, and factorize or say why not."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitpress.errors import NumericalError
from bitpress_workers.numerics.hessian import Gram, GramTree, factorize, reduce_tree, unfactored
from oracles import textbook
from oracles.examples import golden_sequences, random_linear


def gram_of(xtx: torch.Tensor) -> Gram:
    return Gram.of(xtx, num_sequences=2, num_tokens=1)


def test_gram_counts_sequences_and_tokens() -> None:
    gram = Gram.zeros(64)
    x = torch.stack(golden_sequences()[:2])
    gram.accumulate(x, num_sequences=2)
    assert (gram.num_sequences, gram.num_tokens) == (2, 192)
    assert torch.allclose(gram.xtx_II, textbook.hessian(list(x)), rtol=1e-5, atol=1e-4)


def test_gram_takes_16_bit_activations() -> None:
    gram = Gram.zeros(8)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram.accumulate(x, num_sequences=1)
    assert torch.allclose(gram.xtx_II, x.float().T @ x.float())


WIDE = 600  # columns: three blocks of them on a CPU, the last one short


def test_a_wide_gram_is_whole_whenever_it_is_looked_at() -> None:
    x = torch.randn(2, 40, WIDE, generator=torch.Generator().manual_seed(1))
    gram, other = Gram.zeros(WIDE), Gram.zeros(WIDE)
    for tokens in x:
        gram.accumulate(tokens, 1)
        other.accumulate(tokens, 1)
        assert torch.equal(other.xtx_II, other.xtx_II.T)
    assert torch.equal(gram.xtx_II, other.xtx_II)
    exact = x.flatten(0, 1).double()
    assert torch.allclose(gram.xtx_II.double(), exact.T @ exact, rtol=1e-5, atol=1e-4)


def test_grams_merge_before_they_are_looked_at() -> None:
    x = torch.randn(2, 10, WIDE, generator=torch.Generator().manual_seed(2))
    parts = [Gram.zeros(WIDE) for _ in x]
    for gram, tokens in zip(parts, x, strict=True):
        gram.accumulate(tokens, 1)
    expected = parts[0].xtx_II + parts[1].xtx_II
    parts[0].add(parts[1])
    assert torch.equal(parts[0].xtx_II, expected)


def test_the_order_of_sequences_matters_only_to_rounding() -> None:
    one, other = Gram.zeros(64), Gram.zeros(64)
    for x in golden_sequences():
        one.accumulate(x, 1)
    for x in reversed(golden_sequences()):
        other.accumulate(x, 1)
    assert torch.allclose(one.xtx_II, other.xtx_II, rtol=1e-5, atol=1e-3)


def slices(count: int) -> list[Gram]:
    generator = torch.Generator().manual_seed(count)
    return [Gram.of(torch.randn(3, 3, generator=generator) * 10**k, 1, 7) for k in range(count)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(count=st.integers(1, 19), cuts=st.sets(st.integers(1, 18), max_size=6))
def test_any_split_over_holders_gives_the_same_bits(count: int, cuts: set[int]) -> None:
    borders = [0, *sorted(cut for cut in cuts if cut < count), count]
    nodes = {}
    for first, last in itertools.pairwise(borders):
        tree = GramTree()
        for index in range(first, last):
            tree.add(index, slices(count)[index])
        assert len(tree.nodes) <= 2 * (last - first).bit_length()
        nodes.update(tree.nodes)
    single = {(index, 1): gram for index, gram in enumerate(slices(count))}
    expected = reduce_tree(single, count)
    found = reduce_tree(nodes, count)
    assert torch.equal(found.xtx_II, expected.xtx_II)
    assert (found.num_sequences, found.num_tokens) == (count, 7 * count)


def test_the_tree_is_pairwise() -> None:
    a, b, c = slices(3)
    expected = (a.xtx_II + b.xtx_II) + c.xtx_II
    assert torch.equal(reduce_tree({(0, 1): a, (1, 1): b, (2, 1): c}, 3).xtx_II, expected)


def test_a_missing_slice_is_an_error() -> None:
    with pytest.raises(ValueError, match="slice 1 of 2 is missing"):
        reduce_tree({(0, 1): slices(1)[0]}, 2)


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_factor_inverts_the_damped_hessian(damping: float) -> None:
    _, xtx = random_linear(1, 40, seed=5)
    factor = factorize(gram_of(xtx), damping=damping)
    damped = textbook.damp_gptq(xtx, damping)
    assert torch.equal(factor.upper_II, factor.upper_II.triu())
    product = factor.upper_II.T.double() @ factor.upper_II.double() @ damped.double()
    assert torch.allclose(product, torch.eye(40, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(factor.upper_II, textbook.upper_factor(damped.double()).float(), rtol=1e-3, atol=1e-5)
    assert (factor.damping_used, factor.num_tokens, factor.num_dead) == (damping, 1, 0)


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_a_factor_of_several_blocks(order: str) -> None:
    _, xtx = random_linear(1, WIDE, seed=9)
    factor = factorize(gram_of(xtx), damping=0.01, order=order)  # type: ignore[arg-type]
    permutation = torch.arange(WIDE) if factor.order_I is None else factor.order_I
    expected = textbook.upper_factor(textbook.damp_gptq(xtx, 0.01)[permutation][:, permutation].double())
    assert torch.equal(factor.upper_II, factor.upper_II.triu())
    assert torch.linalg.norm(factor.upper_II - expected) < 1e-5 * torch.linalg.norm(expected)


def test_scaling_inputs_by_a_power_of_two_scales_the_factor_exactly() -> None:
    _, xtx = random_linear(1, 24, seed=6)
    one, other = factorize(gram_of(xtx), damping=0.01), factorize(gram_of(xtx * 4), damping=0.01)
    assert torch.equal(one.upper_II, other.upper_II * 2)


@pytest.mark.parametrize("dead_columns", ["before damping", "after damping"])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_dead_columns(dead_columns: str, order: str) -> None:
    _, xtx = random_linear(1, 12, seed=7, dead=(3, 8))
    factor = factorize(gram_of(xtx), damping=0.5, order=order, dead_columns=dead_columns)  # type: ignore[arg-type]
    damp = textbook.damp_gptq if dead_columns == "before damping" else textbook.damp_spqr
    permutation = list(range(12)) if factor.order_I is None else factor.order_I.tolist()
    expected = textbook.upper_factor(damp(xtx, 0.5)[permutation][:, permutation].double())
    assert torch.allclose(factor.upper_II.double(), expected, rtol=1e-3, atol=1e-6)
    assert [permutation[k] for k in factor.dead_I.nonzero().flatten().tolist()] == sorted((3, 8), key=permutation.index)
    assert factor.num_dead == 2


def test_activation_order_is_descending_and_stable() -> None:
    factor = factorize(gram_of(torch.diag(torch.tensor([2.0, 5.0, 2.0, 7.0]))), damping=0.1, order="activation")
    assert factor.order_I is not None
    assert factor.order_I.tolist() == [3, 1, 0, 2]


def test_damping_is_raised_when_it_does_not_suffice() -> None:
    indefinite = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    assert factorize(gram_of(indefinite), damping=0.01).damping_used == pytest.approx(0.1)


def test_a_hessian_that_is_not_positive_definite_is_an_error() -> None:
    with pytest.raises(NumericalError, match=r"not positive definite, not even with damping 10 \(asked for: 0.01\)"):
        factorize(gram_of(torch.tensor([[1.0, 50.0], [50.0, 1.0]])), damping=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_an_error(value: float) -> None:
    xtx = torch.eye(3)
    xtx[1, 2] = value
    with pytest.raises(NumericalError, match="not finite"):
        factorize(gram_of(xtx), damping=0.01)


def test_inputs_that_were_all_zero_leave_the_identity() -> None:
    factor = factorize(gram_of(torch.zeros(3, 3)), damping=1.0, dead_columns="after damping")
    assert torch.equal(factor.upper_II, torch.eye(3))
    assert factor.num_dead == 3


def test_the_gram_is_not_modified() -> None:
    _, xtx = random_linear(1, 6, seed=8)
    gram = gram_of(xtx.clone())
    factorize(gram, damping=0.1, order="activation")
    assert torch.equal(gram.xtx_II, xtx)


def test_a_method_without_a_hessian_knows_no_dead_columns() -> None:
    factor = unfactored(3, torch.device("cpu"), num_tokens=3)
    assert (factor.num_dead, factor.damping_used, len(factor.dead_I)) == (0, None, 3)
