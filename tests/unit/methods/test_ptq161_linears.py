"""PTQ1.61 is its textbook, its rows and columns that are special are defined, and what is stored is what is meant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitpress.errors import NumericalError
from bitpress.formats import SalientBinary, from_tensors
from bitpress.methods import PTQ161Config
from bitpress_workers.methods.block_base import LinearState
from bitpress_workers.methods.ptq161 import PTQ161, BinaryLinear, salient_channels
from oracles import ptq161 as oracle
from oracles import textbook
from oracles.examples import random_linear

TRAINED = ("scale", "row_rotation", "column_rotation")


def begun(weight_OI: Tensor, salient_I: Tensor, config: PTQ161Config | None = None) -> tuple[LinearState, BinaryLinear]:
    method = PTQ161(config or PTQ161Config())
    state = method.begin(weight_OI, salient_I)
    return state, method.prepare(weight_OI, state)


def perturbed(state: LinearState, seed: int) -> LinearState:
    """As training may leave it."""
    draw = torch.Generator().manual_seed(seed)
    noise = {key: 1 + 0.1 * torch.randn(state[key].shape, generator=draw) for key in TRAINED}
    return state | {key: state[key] * noise[key] for key in TRAINED}


@pytest.mark.parametrize(
    ("columns", "percent", "count"), [(64, 20, 13), (64, 0, 1), (10, 20, 3), (5, 100, 5), (1, 0, 1)]
)
def test_one_channel_more_than_the_share(columns: int, percent: float, count: int) -> None:
    saliency_I = torch.rand(columns, generator=torch.Generator().manual_seed(columns))
    salient_I = salient_channels(saliency_I, percent)
    assert int(salient_I.sum()) == count
    assert salient_I.tolist() == oracle.mask(saliency_I, percent)


def test_saliency_is_the_largest_or_the_mean_magnitude() -> None:
    first, second = (
        torch.tensor([[3.0, -1.0, 2.0], [0.0, 1.0, 2.0]]),
        torch.tensor([[0.0, -1.5, 2.0], [0.0, 1.0, -2.5]]),
    )
    for saliency, expected in (("max", [True, False, False]), ("mean", [False, False, True])):
        method = PTQ161(PTQ161Config(salient_percent=0, saliency=saliency))
        assert method.agree([method.survey(first), method.survey(second)], 3).tolist() == expected
        assert method.agree([method.survey(second), method.survey(first)], 3).tolist() == expected


def test_without_any_token_the_first_channels_are_salient() -> None:
    assert PTQ161(PTQ161Config()).agree([], 5).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("seed", range(3))
def test_the_initial_weight_is_the_textbook(seed: int) -> None:
    weight_OI, _ = random_linear(24, 40, seed)
    weight_OI[3, 5:9] = 0  # zeros are left out of a row's means
    salient_I = salient_channels(torch.rand(40, generator=torch.Generator().manual_seed(seed)), 20)
    state, linear = begun(weight_OI, salient_I)
    expected = oracle.Scales.initial(weight_OI, salient_I.tolist())
    torch.testing.assert_close(state["mean"], expected.mean, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(state["scale"], expected.alpha, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(linear.weight(state), expected.fake_weight(4, textbook.half_scale), rtol=1e-5, atol=1e-7)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    percent=st.sampled_from([0, 5, 20, 73.1, 100]),
    bits=st.integers(2, 8),
    special=st.sampled_from([0.0, 1.0, -0.3]),
    magnitude=st.sampled_from([1e-3, 1.0, 1000.0]),
    seed=st.integers(0, 99),
)
def test_what_is_stored_is_what_was_trained(
    shape: tuple[int, int], percent: float, bits: int, special: float, magnitude: float, seed: int
) -> None:
    """Up to the 16 bits of what is stored, and exactly once that is read back."""
    weight_OI, _ = random_linear(*shape, seed)
    weight_OI[:1] = special
    weight_OI *= magnitude
    salient_I = salient_channels(torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)), percent)
    state, linear = begun(weight_OI, salient_I, PTQ161Config(salient_bits=bits))
    state = perturbed(state, seed)
    stored = linear.compress(state)
    dense_OI = stored.dequantize()
    assert bool(torch.isfinite(dense_OI).all())
    torch.testing.assert_close(
        dense_OI, linear.weight(state), rtol=4e-3, atol=3e-3 * float(weight_OI.abs().max()) + 1e-6
    )
    assert torch.equal(from_tensors(stored.header(), stored.tensors()).dequantize(), dense_OI)


def test_rows_without_spread_keep_their_value() -> None:
    weight_OI, _ = random_linear(6, 20, seed=0)
    weight_OI[1], weight_OI[4] = 0.75, 0.0
    salient_I = salient_channels(torch.arange(20.0), 20)
    state, linear = begun(weight_OI, salient_I)
    assert linear.num_constant_rows == 2
    assert torch.equal(linear.weight(state)[[1, 4]][:, ~salient_I], weight_OI[[1, 4]][:, ~salient_I])
    assert torch.equal(linear.compress(state).dequantize()[[1, 4]][:, ~salient_I], weight_OI[[1, 4]][:, ~salient_I])
    weight = linear.weight(state | {"scale": state["scale"].requires_grad_()})
    weight.square().sum().backward()
    gradient_O1 = state["scale"].grad
    assert gradient_O1 is not None
    assert (gradient_O1[:, 0] == 0).tolist() == [False, True, False, False, True, False]


def test_salient_columns_do_not_depend_on_what_is_trained() -> None:
    weight_OI, _ = random_linear(12, 30, seed=1)
    salient_I = salient_channels(torch.arange(30.0), 20)
    state, linear = begun(weight_OI, salient_I)
    trained = {key: tensor.clone().requires_grad_(key in TRAINED) for key, tensor in state.items()}
    linear.weight(trained)[:, salient_I].sum().backward()
    assert all(trained[key].grad is None or not trained[key].grad.any() for key in TRAINED)
    assert torch.equal(linear.weight(perturbed(state, 0))[:, salient_I], linear.weight(state)[:, salient_I])


def test_signs_are_those_of_the_first_weights() -> None:
    weight_OI, _ = random_linear(12, 30, seed=2)
    salient_I = salient_channels(torch.arange(30.0), 20)
    state, linear = begun(weight_OI, salient_I)
    stored = linear.compress(perturbed(state, 3))
    assert isinstance(stored, SalientBinary)
    signs_ON = stored.tensors()["signs"]
    assert torch.equal(signs_ON, linear.compress(state).tensors()["signs"])


def test_the_loss_of_equal_outputs_is_zero_and_of_others_is_not_less() -> None:
    method, draw = PTQ161(PTQ161Config()), torch.Generator().manual_seed(0)
    output_TD = torch.randn(1, 7, 16, generator=draw)
    assert float(method.loss(output_TD, [output_TD, output_TD])) == pytest.approx(0, abs=1e-6)
    for _ in range(5):
        near = [output_TD + 0.3 * torch.randn(1, 7, 16, generator=draw) for _ in range(2)]
        loss = float(method.loss(output_TD, near))
        assert loss > 0
        assert loss == pytest.approx(
            float(oracle.loss(output_TD.double(), near[0].double(), near[1].double())), rel=1e-5
        )


def test_the_worked_example() -> None:
    weight_OI = torch.tensor([[1.0, 0.5], [-2.0, 0.25]])
    method = PTQ161(PTQ161Config(salient_percent=0, salient_bits=2), scale_dtype=torch.float32)
    salient_I = method.agree([torch.tensor([3.0, 1.0])], 2)
    state = method.begin(weight_OI, salient_I)
    linear = method.prepare(weight_OI, state)
    torch.testing.assert_close(linear.weight(state), torch.tensor([[1.0, 0.5], [-2.25, 0.25]]))


def test_what_does_not_fit_into_16_bits_is_refused() -> None:
    weight_OI, _ = random_linear(4, 8, seed=0)
    salient_I = salient_channels(torch.arange(8.0), 20)
    with pytest.raises(NumericalError, match="16 bits"):
        begun(weight_OI * 1e8, salient_I)
    state, linear = begun(weight_OI, salient_I)
    with pytest.raises(NumericalError, match="scale of a column"):
        linear.compress(state | {"column_rotation": state["column_rotation"] * 1e6})
