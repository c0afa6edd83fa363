"""What no method takes is refused with a clear error."""

import pytest
import torch
from torch import Tensor

from bitpress.errors import NumericalError
from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress
from oracles.examples import random_linear


@pytest.mark.parametrize("config", [GPTQConfig(bits=3), SpQRConfig(), SEPTQConfig(bits=3)], ids=lambda c: str(c.kind))
def test_a_hessian_that_will_not_do_is_refused(config: MethodConfig) -> None:
    weight, hessian = random_linear(8, 16, seed=25)
    with pytest.raises(ValueError, match="not symmetric"):
        compress(weight, hessian.triu(), config)
    with pytest.raises(NumericalError, match="not positive definite"):
        compress(weight, -hessian, config)


def test_a_row_beyond_16_bits_is_an_error_not_a_crash() -> None:
    weight, hessian = random_linear(32, 64, seed=26)
    weight[4] *= 1e7
    configs: list[MethodConfig] = [RTNConfig(bits=3), GPTQConfig(bits=3), SEPTQConfig(bits=3), SpQRConfig()]
    for config in configs:
        with pytest.raises(NumericalError, match="16 bits"):
            compress(weight, hessian, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = torch.zeros(4, 4)
    weight[1, 2] = value
    with pytest.raises(NumericalError, match="weight: not finite"):
        compress(weight, torch.eye(4), RTNConfig(bits=4))


@pytest.mark.parametrize(
    ("weight", "hessian", "message"),
    [
        (torch.zeros(4), torch.eye(4), r"weight: expected float32 \[out, in\]"),
        (torch.zeros(2, 4, dtype=torch.float16), torch.eye(4), "found torch.float16"),
        (torch.zeros(0, 4), torch.eye(4), r"found torch.float32 \[0, 4\]"),
        (torch.zeros(2, 4), torch.eye(3), r"hessian: expected float32 \[4, 4\]"),
        (torch.zeros(2, 4), None, "septq needs a Hessian"),
        (torch.zeros(1, 65537), None, "at most 65536 columns"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(weight: Tensor, hessian: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(weight, hessian, SEPTQConfig(bits=4))


def test_weights_beyond_16_bits_are_refused() -> None:
    with pytest.raises(NumericalError, match="16 bits"):
        compress(torch.full((2, 4), 1e30), None, RTNConfig(bits=4))
    weight, hessian = random_linear(16, 16, seed=16)
    with pytest.raises(NumericalError, match="an outlier does not fit into 16 bits"):
        compress(weight * 1e6, hessian, SEPTQConfig(bits=8, retained_percent=99))


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    hessian = torch.eye(4)
    hessian[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="Hessian is not finite"):
        compress(torch.ones(2, 4), hessian, SpQRConfig())
