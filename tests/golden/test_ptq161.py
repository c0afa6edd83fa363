"""The published example of PTQ1.61: 16 x 64 weights, made-up activations, printed numbers."""

import pytest
import torch
from torch import Tensor

from bitpress.methods import PTQ161Config
from bitpress_workers.methods.ptq161 import PTQ161, salient_channels
from oracles import ptq161 as oracle
from oracles.examples import golden_weight

SALIENT = [8, 9, 17, 18, 26, 27, 35, 36, 44, 45, 53, 54, 63]


@pytest.fixture
def saliency() -> Tensor:
    return torch.tensor([1 + (7 * j % 64) / 16 for j in range(64)])


def test_the_mask(saliency: Tensor) -> None:
    salient_I = salient_channels(saliency, 20.0)
    assert salient_I.nonzero()[:, 0].tolist() == SALIENT
    assert float(saliency[salient_I].min()) == oracle.threshold(saliency, 20.0) == 4.1875


def test_ties_go_to_the_first_channels() -> None:
    """Published code keeps all that tie: 31 of 64 where 13 were asked for."""
    saliency_I = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.5])
    assert salient_channels(saliency_I, 20.0).tolist() == [False, True, True, False, False]


def test_scales_and_values(saliency: Tensor) -> None:
    weight_OI = golden_weight()
    method = PTQ161(PTQ161Config(), scale_dtype=torch.float32)
    state = method.begin(weight_OI, salient_channels(saliency, 20.0))
    assert float(state["mean"][0]) == pytest.approx(0.0027134337, rel=1e-5)
    assert float(state["scale"][0]) == pytest.approx(0.09440527, rel=1e-5)
    values_OI = method.prepare(weight_OI, state).weight(state)
    row = [0.0971187] * 3 + [-0.0916918] * 3 + [0.0971187] * 2 + [0.0777744, -0.0777744]
    assert values_OI[0, :10].tolist() == pytest.approx(row, rel=2e-6)
    assert float(values_OI.double().sum()) == pytest.approx(0.172986, rel=1e-5)
    assert float((weight_OI - values_OI).double().square().sum()) == pytest.approx(2.275280, rel=1e-5)
    scales = oracle.Scales.initial(weight_OI, [j in SALIENT for j in range(64)])
    torch.testing.assert_close(values_OI, scales.fake_weight(4), rtol=1e-5, atol=1e-7)
