"""What an artifact stores of a SpQR linear is what the published packing holds: its words, and what they decode to."""

import pytest
import torch

from bitpress.formats import GroupedAffine, statistics
from bitpress.formats.grouped_affine import affine_parts
from bitpress.methods import SpQRConfig
from bitpress_workers.methods import compress
from oracles import spqr_words
from oracles.examples import random_linear

PUBLISHED = """1e33aa1e33aa11 319d50f19d50fc 80cea878cea87a7 827543c67543c4a 3aa1e33aa1e335 150f19d50f19d8
ea878cea878ce83 e83c67543c6756e 1e33aa1e33aa11 319d50f19d50fc 2f8cea878cea87a7 2fa7543c67543c4a 3aa1e33aa1e335
150f19d50f19d8 2d2878cea878ce83 2d03c67543c6756e"""


def test_the_published_words() -> None:
    """One 16 x 16 tile: codes (3k + 5l) mod 8 on quantized scales and zeros."""
    k, column = torch.arange(16)[:, None], torch.arange(16)[None]

    def number(codes: torch.Tensor, scale: float, zero: float) -> statistics.Part:
        return statistics.bilevel(codes.to(torch.uint8), torch.tensor([[scale]]), torch.tensor([[zero]]), 3, 16)

    codes = ((3 * k + 5 * column) % 8).to(torch.uint8)
    scale, zero = number((3 * k + 1) % 8, 0.0078125, -1.5), number((5 * k + 2) % 8, 0.75, -0.25)
    linear = GroupedAffine.from_parts(affine_parts(codes, 3, 16, scale, zero))
    ((tile,),) = spqr_words.words(linear.tensors(), 16, 16)
    assert [f"{word:x}" for word in tile] == PUBLISHED.split()
    decoded = spqr_words.decode(tile)
    assert decoded[0, :4].tolist() == pytest.approx([-0.03296, 0.06470, 0.006104, 0.10376], abs=5e-6)
    assert decoded[15, -3:].tolist() == pytest.approx([0.12085, -0.05493, -0.2307], abs=5e-5)
    assert float(decoded.float().sum()) == pytest.approx(2.75, rel=1e-3)


def test_a_solved_linear_survives_the_published_packing() -> None:
    weight, hessian = random_linear(48, 64, seed=8)
    linear = compress(weight, hessian, SpQRConfig(outlier_threshold=None, order="natural"))
    tiles = spqr_words.words(linear.tensors(), 48, 64)
    decoded = torch.cat([torch.cat([spqr_words.decode(tile) for tile in row], dim=1) for row in tiles])
    assert torch.allclose(decoded.float(), linear.dequantize(), atol=2e-3 * float(weight.abs().max()))
