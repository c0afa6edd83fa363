"""What the quality benchmark measures jobs by is the textbook form of the methods."""

import pytest
import specification
import torch

from oracles import textbook
from oracles.examples import random_linear

ROWS, COLUMNS = 48, 96


@pytest.mark.parametrize("seed", range(3))
def test_spqr_is_the_textbook_s(seed: int) -> None:
    weight, hessian = random_linear(ROWS, COLUMNS, seed)
    grids = {"bits": 3, "group_size": 16, "scale_bits": 3, "zero_bits": 3, "statistics_group_size": 16}
    solved = specification.spqr(weight, hessian, outlier_threshold=0.2, damping=1.0, **grids)
    expected = textbook.spqr(weight, hessian, textbook.SpQROptions())
    assert expected.outliers
    torch.testing.assert_close(solved, expected.natural(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_septq_is_the_textbook_s(seed: int) -> None:
    weight, hessian = random_linear(ROWS, COLUMNS, seed)
    solved = specification.septq(weight, hessian, bits=3, retained_percent=1.0, damping=0.01)
    expected = textbook.septq(weight, hessian, 3, 1.0)
    assert len(expected.outliers) == ROWS * COLUMNS // 100 + 1
    torch.testing.assert_close(solved, expected.natural(), rtol=1e-5, atol=1e-7)
