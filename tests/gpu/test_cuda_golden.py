"""The published numbers of each method, computed on a GPU: the tests of tests/golden, with tensors made there."""

from collections.abc import Iterator

import pytest
import torch

from golden.test_golden import *  # noqa: F403  its tests and their fixtures

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def on_gpu(cuda: torch.device) -> Iterator[None]:
    torch.set_default_device(cuda)
    yield
    torch.set_default_device("cpu")
