"""Hessians and factors on a GPU: as exact as float32 sums are, and without another matrix of their size."""

import pytest
import torch
from torch import Tensor

from bitpress_workers.numerics.hessian import Gram, factorize

pytestmark = pytest.mark.gpu

TOKENS, COLUMNS = 2048, 4500  # three blocks of columns, the last one short
EPSILON = 2.0**-24  # half a unit in the last place of float32


def activations(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Correlated inputs, a few of them a hundred times larger than the others."""
    generator = torch.Generator(device).manual_seed(3)
    x_TI = torch.randn(TOKENS, COLUMNS, device=device, generator=generator) + 0.3
    x_TI[:, ::97] *= 100
    return x_TI.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.usefixtures("tf32_chosen")
def test_sums_are_those_of_float32(cuda: torch.device, dtype: torch.dtype) -> None:
    x_TI = activations(dtype, cuda)
    gram = Gram.zeros(COLUMNS, cuda)
    gram.accumulate(x_TI, 1)
    exact_TI = x_TI.double()
    error_II = (gram.xtx_II.double() - exact_TI.T @ exact_TI).abs()
    # Each of T additions errs by half a unit at most; 16-bit sums would err by 2**-9, TF32 by 2**-11.
    assert float((error_II / (exact_TI.abs().T @ exact_TI.abs())).max()) < TOKENS**0.5 * 4 * EPSILON


def test_the_same_tokens_give_the_same_bits(cuda: torch.device) -> None:
    x_TI = activations(torch.bfloat16, cuda)
    grams = [Gram.zeros(COLUMNS, cuda) for _ in range(2)]
    for gram in grams:
        gram.accumulate(x_TI, 1)
        gram.accumulate(x_TI.flip(0), 1)
    assert torch.equal(grams[0].xtx_II, grams[1].xtx_II)


def test_accumulating_takes_no_second_matrix(cuda: torch.device) -> None:
    x_TI, gram = activations(torch.bfloat16, cuda), Gram.zeros(COLUMNS, cuda)
    gram.accumulate(x_TI, 1)  # cuBLAS takes its workspace
    assert extra_bytes(lambda: gram.accumulate(x_TI, 1), cuda) < gram.xtx_II.nbytes / 4


def test_a_factor_is_exact_and_takes_one_more_matrix(cuda: torch.device) -> None:
    gram = Gram.zeros(COLUMNS, cuda)
    for _ in range(3):
        gram.accumulate(activations(torch.bfloat16, cuda) + torch.randn(TOKENS, COLUMNS, device=cuda).bfloat16(), 1)
    factorize(gram, damping=0.01)  # cuSOLVER takes its workspace
    assert extra_bytes(lambda: factorize(gram, damping=0.01, order="activation"), cuda) < 2.6 * gram.xtx_II.nbytes
    upper_II = factorize(gram, damping=0.01).upper_II.double()
    hessian_II = gram.xtx_II.double() * (2 / gram.num_sequences)
    hessian_II.diagonal().add_(0.01 * hessian_II.diagonal().mean())
    residual_II = upper_II @ hessian_II @ upper_II.T - torch.eye(COLUMNS, dtype=torch.float64, device=cuda)
    assert float(residual_II.abs().max()) < 1e-2


def extra_bytes(work, device: torch.device) -> int:  # type: ignore[no-untyped-def]
    """The most memory a piece of work takes beyond what was taken before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
