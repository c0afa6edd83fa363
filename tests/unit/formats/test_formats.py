"""What is stored: sizes by the bit, exact values back, whole from parts, refusals."""

import json
import pickle
from typing import Any

import pytest
import safetensors.torch
import torch

from bitpress.errors import ArtifactError, NumericalError
from bitpress.formats import (
    CompressedLinear,
    GroupedAffine,
    OutlierGrouped,
    concatenate,
    from_tensors,
    layout,
    statistics,
)
from bitpress.formats.grouped_affine import affine_parts
from bitpress.formats.outlier_grouped import outlier_parts
from bitpress.methods import MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress
from oracles.examples import random_linear

CONFIGS: list[MethodConfig] = [
    RTNConfig(bits=4, group_size=16),
    RTNConfig(bits=3, symmetric=True),
    SpQRConfig(),
    SpQRConfig(outlier_threshold=None, scale_bits=None, zero_bits=None, order="natural"),
    SpQRConfig(round_zero=True, symmetric=False, bits=3, zero_bits=3),
    SpQRConfig(symmetric=True, bits=5, group_size=None),
    SEPTQConfig(bits=2, retained_percent=5),
]


def names(config: MethodConfig) -> str:
    return config.model_dump_json(exclude_defaults=True)


@pytest.fixture(params=CONFIGS, ids=names)
def compressed(request: pytest.FixtureRequest) -> CompressedLinear:
    return compress(*random_linear(40, 36, seed=1, dead=(5,)), request.param)


def test_header_and_tensors_are_all_there_is(compressed: CompressedLinear) -> None:
    header = json.loads(json.dumps(compressed.header()))
    stored = safetensors.torch.load(safetensors.torch.save(compressed.tensors()))
    assert layout(header) == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()}
    again = from_tensors(header, stored)
    assert again.shape == (40, 36)
    assert torch.equal(again.dequantize(), compressed.dequantize())


def test_stored_bits_are_the_bits_on_disk(compressed: CompressedLinear) -> None:
    data = safetensors.torch.save(compressed.tensors())
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    assert compressed.stored_bits() == 8 * (len(data) - header_bytes)


def bits_per_weight(rows: int, columns: int, config: MethodConfig) -> tuple[float, float]:
    linear = compress(*random_linear(rows, columns, seed=2), config)
    return linear.stored_bits() / (rows * columns), linear.outlier_fraction


@pytest.mark.parametrize(("bits", "group"), [(2, 16), (3, 32), (4, 64), (8, None)])
def test_bits_of_rtn(bits: int, group: int | None) -> None:
    per_weight, _ = bits_per_weight(64, 128, RTNConfig(bits=bits, group_size=group))
    assert per_weight == bits + (16 + bits) / (group or 128)


def test_bits_of_symmetric_rtn_count_no_zeros() -> None:
    assert bits_per_weight(64, 128, RTNConfig(bits=4, group_size=32, symmetric=True))[0] == 4 + 16 / 32


def test_bits_of_spqr() -> None:
    per_weight, outliers = bits_per_weight(64, 128, SpQRConfig())
    row_offsets, order = 32 * 65 / (64 * 128), 16 / 64
    assert per_weight == pytest.approx(3.625 + 32 * outliers + row_offsets + order)
    assert bits_per_weight(64, 128, SpQRConfig(outlier_threshold=None, order="natural"))[0] == 3.625


def test_bits_of_septq() -> None:
    per_weight, outliers = bits_per_weight(64, 128, SEPTQConfig(bits=3, retained_percent=1))
    assert outliers == (64 * 128 // 100 + 1) / (64 * 128)
    assert per_weight == pytest.approx(3 + (16 + 3) / 128 + 32 * outliers + 32 * 65 / (64 * 128))


def test_rows_that_do_not_end_at_a_byte_are_padded_to_one() -> None:
    per_weight, _ = bits_per_weight(8, 3, RTNConfig(bits=3))
    assert per_weight * 24 == 8 * (16 + 16 + 3)  # 9 bits of codes take 16, the 8 zeros together 24


def test_parts_join_to_the_whole() -> None:
    values = torch.randn(21, 13, generator=torch.Generator().manual_seed(0)).half().float()

    def pack_rows(first: int, last: int) -> OutlierGrouped:
        part = values[first:last]
        ones = torch.ones(len(part), 1)
        codes = affine_parts(
            (part.abs() * 2).clamp(max=7).to(torch.uint8), 3, 13, statistics.float16(ones), statistics.integer(ones, 3)
        )
        return OutlierGrouped.from_parts(codes, outlier_parts(part > 1, part))

    whole, joined = pack_rows(0, 21), concatenate([pack_rows(0, 8), pack_rows(8, 16), pack_rows(16, 21)])
    assert joined.header() == whole.header()
    assert whole.tensors().keys() == joined.tensors().keys()
    assert all(torch.equal(tensor, joined.tensors()[name]) for name, tensor in whole.tensors().items())
    kept = values > 1
    assert torch.equal(joined.dequantize()[kept], values[kept])


def test_parts_must_end_at_a_byte_and_belong_together() -> None:
    weight, hessian = random_linear(12, 8, seed=0)
    first, other = (compress(weight, hessian, RTNConfig(bits=bits)) for bits in (3, 4))
    with pytest.raises(ValueError, match="multiple of 8 rows"):
        concatenate([first, first])
    eight = compress(weight[:8], hessian, RTNConfig(bits=3))
    with pytest.raises(ValueError, match="different linears"):
        concatenate([eight, other])


def test_more_columns_than_a_signed_16_bit_id_can_name() -> None:
    """Published packing loses columns above 32767; a mask keeps the two last ones of 65536 here."""
    columns = 65536
    mask = torch.zeros(1, columns, dtype=torch.bool)
    mask[0, -2:] = True
    values = torch.full((1, columns), 2.0)
    one = statistics.float16(torch.ones(1, 1))
    order = torch.arange(columns).flip(0)
    codes = affine_parts(
        torch.zeros(1, columns, dtype=torch.uint8), 2, columns, one, statistics.constant(0), order_I=order
    )
    dense = OutlierGrouped.from_parts(codes, outlier_parts(mask, values)).dequantize()
    assert dense.nonzero().tolist() == [[0, 0], [0, 1]]


def header_of(**changes: Any) -> dict[str, Any]:
    linear = compress(*random_linear(8, 8, seed=0), SEPTQConfig(bits=3))
    return linear.header() | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "folded"}, "no storage format is called 'folded'"),
        ({"version": 2}, "version 2"),
        ({"shape": [8, 65537]}, "at most 65536 columns"),
        ({"scale": {"kind": "random"}}, "'random'"),
        ({"outliers": "divide"}, "'divide'"),
    ],
)
def test_headers_that_cannot_be_read_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        layout(header_of(**changes))


@pytest.mark.parametrize("key", ["shape", "bits", "group_size", "scale", "order", "nnz"])
def test_a_header_that_lacks_something_is_refused(key: str) -> None:
    header = header_of()
    del header[key]
    with pytest.raises(ArtifactError, match=f"not a header of a compressed linear.*{key}"):
        layout(header)


def test_compressed_linears_cross_process_borders(compressed: CompressedLinear) -> None:
    again = pickle.loads(pickle.dumps(compressed))
    assert again.header() == compressed.header()
    assert torch.equal(again.dequantize(), compressed.dequantize())


def test_tensors_that_do_not_fit_the_header_are_refused() -> None:
    linear = compress(*random_linear(8, 8, seed=0), RTNConfig(bits=3))
    with pytest.raises(ArtifactError, match="expected tensors"):
        from_tensors(linear.header(), linear.tensors() | {"codes": torch.zeros(8, 4, dtype=torch.uint8)})
    with pytest.raises(ArtifactError, match="expected tensors"):
        GroupedAffine(linear.header(), {})


def test_what_does_not_fit_into_16_bits_is_refused() -> None:
    with pytest.raises(NumericalError, match="16 bits"):
        statistics.float16(torch.tensor([[70000.0]]))
    with pytest.raises(NumericalError, match="outlier"):
        outlier_parts(torch.tensor([[True]]), torch.tensor([[1e5]]))
