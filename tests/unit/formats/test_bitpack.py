import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitpress.formats.bitpack import pack, packed_bytes, unpack


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bits=st.integers(1, 8), rows=st.integers(1, 4), count=st.integers(1, 70), seed=st.integers(0, 999))
def test_unpack_undoes_pack(bits: int, rows: int, count: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_bytes(count, bits))
    assert packed.numel() * 8 - rows * count * bits < 8 * rows
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_stream_is_little_endian_without_gaps(bits: int) -> None:
    codes = [(5 * k + 3) % 2**bits for k in range(11)]
    number = sum(code << (k * bits) for k, code in enumerate(codes))
    expected = number.to_bytes(packed_bytes(11, bits), "little")
    assert bytes(pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist()) == expected


def test_codes_are_not_modified() -> None:
    codes = torch.arange(8, dtype=torch.uint8)
    pack(codes, 3)
    assert codes.tolist() == list(range(8))
