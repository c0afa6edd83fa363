"""Signs and salient codes: sizes by the bit, exact values back, whole from parts, refusals."""

import json
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitpress.errors import ArtifactError, NumericalError
from bitpress.formats import SalientBinary, concatenate, from_tensors, layout
from bitpress.formats.salient_binary import salient_parts, sign_parts


class Values:
    """Random contents of a linear; every number is a float16 already."""

    def __init__(self, rows: int, columns: int, salient: int, bits: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.bits = bits
        self.salient_I = torch.zeros(columns, dtype=torch.bool)
        self.salient_I[torch.randperm(columns, generator=draw)[:salient]] = True
        self.codes_OK = torch.randint(0, 2**bits, (rows, salient), generator=draw, dtype=torch.uint8)
        self.zero_O1 = torch.randint(0, 2**bits, (rows, 1), generator=draw).float()
        self.scale_O1, self.row_scale_O1, self.row_mean_O1 = (
            torch.randn(rows, 1, generator=draw).half().float() for _ in range(3)
        )
        self.column_scale_N = torch.randn(columns - salient, generator=draw).half().float()
        self.positive_ON = torch.rand(rows, columns - salient, generator=draw) < 0.5

    def rows(self, first: int, last: int) -> SalientBinary:
        salient = salient_parts(
            self.salient_I, self.codes_OK[first:last], self.bits, self.scale_O1[first:last], self.zero_O1[first:last]
        )
        scale_O, mean_O = self.row_scale_O1[first:last, 0], self.row_mean_O1[first:last, 0]
        signs = sign_parts(self.positive_ON[first:last], scale_O, mean_O, self.column_scale_N)
        return SalientBinary.from_parts(salient, signs)

    def whole(self) -> SalientBinary:
        return self.rows(0, len(self.codes_OK))

    def dense(self) -> Tensor:
        """By the words of the format's description, one weight at a time."""
        dense = torch.empty(len(self.codes_OK), len(self.salient_I))
        salient, others = self.salient_I.nonzero()[:, 0].tolist(), (~self.salient_I).nonzero()[:, 0].tolist()
        for i in range(len(dense)):
            for k, j in enumerate(salient):
                dense[i, j] = self.scale_O1[i, 0] * (self.codes_OK[i, k] - self.zero_O1[i, 0])
            for k, j in enumerate(others):
                sign = 1 if self.positive_ON[i, k] else -1
                dense[i, j] = self.column_scale_N[k] * (self.row_mean_O1[i, 0] + sign * self.row_scale_O1[i, 0])
        return dense


shapes = st.tuples(st.integers(1, 20), st.integers(1, 40)).flatmap(
    lambda shape: st.tuples(st.just(shape[0]), st.just(shape[1]), st.integers(0, shape[1]), st.integers(2, 8))
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=shapes)
def test_any_contents_come_back(shape: tuple[int, int, int, int]) -> None:
    values = Values(*shape)
    linear = values.whole()
    assert torch.equal(linear.dequantize(), values.dense())
    header = json.loads(json.dumps(linear.header()))
    data = safetensors.torch.save(linear.tensors())
    stored = safetensors.torch.load(data)
    assert layout(header) == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()}
    assert linear.stored_bits() == 8 * (len(data) - 8 - int.from_bytes(data[:8], "little"))
    again = from_tensors(header, stored)
    assert torch.equal(again.dequantize(), linear.dequantize())


def test_the_paper_s_size_is_near_its_bits() -> None:
    """4096 x 4096, 20 % and one of the columns in 4 bits; the paper counts 1.61."""
    header = Values(1, 4096, 820, 4).whole().header() | {"shape": [4096, 4096]}
    bits = sum(8 * torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout(header).values())
    weights, rows, padding = 4096 * 4096, 4096, 4 * 4096
    nominal = rows * (820 * 4 + 3276) + 3 * 16 * rows + 4 * rows + 16 * 3276 + 4096
    assert bits == nominal + padding
    assert bits / weights == pytest.approx(1.6176, abs=1e-4)


def test_parts_join_to_the_whole() -> None:
    values = Values(21, 13, 4, 3)
    whole, joined = values.whole(), concatenate([values.rows(0, 8), values.rows(8, 16), values.rows(16, 21)])
    assert joined.header() == whole.header()
    assert all(torch.equal(tensor, joined.tensors()[name]) for name, tensor in whole.tensors().items())


def test_parts_of_different_columns_cannot_be_joined() -> None:
    first, other = Values(8, 13, 4, 3).whole(), Values(8, 13, 4, 3, seed=1).whole()
    with pytest.raises(ValueError, match="must share"):
        concatenate([first, other])


def test_it_crosses_process_borders() -> None:
    linear = Values(5, 11, 3, 4).whole()
    again = pickle.loads(pickle.dumps(linear))
    assert again.header() == linear.header()
    assert torch.equal(again.dequantize(), linear.dequantize())


@pytest.mark.parametrize("key", ["shape", "bits", "num_salient"])
def test_a_header_that_lacks_something_is_refused(key: str) -> None:
    header = Values(5, 11, 3, 4).whole().header()
    del header[key]
    with pytest.raises(ArtifactError, match=f"not a header of a compressed linear.*{key}"):
        layout(header)


def test_tensors_that_do_not_fit_the_header_are_refused() -> None:
    linear = Values(5, 11, 3, 4).whole()
    with pytest.raises(ArtifactError, match="expected tensors"):
        from_tensors(linear.header() | {"num_salient": 5}, linear.tensors())


def test_what_does_not_fit_into_16_bits_is_refused() -> None:
    values = Values(5, 11, 3, 4)
    values.column_scale_N[0] = 70000
    with pytest.raises(NumericalError, match="scale of a column"):
        values.whole()
