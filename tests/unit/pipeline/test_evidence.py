"""What a linear's output loses, from the strips of a Gram alone, against plain float64."""

import pytest
import torch

from bitpress.methods import RTNConfig
from bitpress_workers.methods import compress
from bitpress_workers.numerics.hessian import Gram
from bitpress_workers.pipeline.evidence import tile_errors

ROWS, COLUMNS, TILE = 100, 600, 64  # the last tile of rows and the last block of columns are short
RTN = RTNConfig(bits=3)


def test_errors_of_tiles_are_those_of_the_whole_gram_and_do_not_depend_on_who_holds_them() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(200, COLUMNS, generator=generator) * torch.linspace(0.1, 3, COLUMNS)
    weight_RI = torch.randn(ROWS, COLUMNS, generator=generator)
    gram = Gram.zeros(COLUMNS)
    gram.accumulate(x_TI, num_sequences=1)
    compressed = compress(weight_RI, None, RTN)
    pairs = tile_errors(weight_RI, compressed, gram, TILE)
    lost = (weight_RI - compressed.dequantize()).double() @ x_TI.double().T
    output = weight_RI.double() @ x_TI.double().T
    for tile, (error, reference) in zip((slice(0, TILE), slice(TILE, ROWS)), pairs, strict=True):
        assert error == pytest.approx(float(lost[tile].square().sum()), rel=1e-5)
        assert reference == pytest.approx(float(output[tile].square().sum()), rel=1e-5)
    rest_RI = weight_RI[TILE:]
    assert tile_errors(rest_RI, compress(rest_RI, None, RTN), gram, TILE) == pairs[1:]
