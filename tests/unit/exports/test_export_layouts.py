"""What each target stores decodes, by unpackers that are not ours, to exactly what was calibrated."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from bitpress.formats import CompressedLinear, GroupedAffine, statistics
from bitpress.formats.grouped_affine import affine_parts
from bitpress.methods import GPTQConfig, RTNConfig, SpQRConfig
from bitpress_workers.exports import create_target
from bitpress_workers.exports.affine import AffineCodes, pack_words
from bitpress_workers.methods import compress
from oracles.gptq_layout import read_stream, read_weight

ROWS, COLUMNS = 64, 96
GROUPS = [None, 32]


def random_linear(method: RTNConfig | GPTQConfig) -> CompressedLinear:
    """A linear as a method might leave it: any code, zero and scale, some columns of which all weights are 0."""
    torch.manual_seed(0)
    size = method.group_size or COLUMNS
    groups, bits = COLUMNS // size, method.bits
    codes_OI = torch.randint(2**bits, (ROWS, COLUMNS), dtype=torch.uint8)
    zero_OG = torch.randint(2**bits, (ROWS, groups), dtype=torch.uint8)
    zero = statistics.constant(2 ** (bits - 1)) if method.symmetric else statistics.integer(zero_OG, bits)
    scale = statistics.float16(torch.rand(ROWS, groups) + 0.01)
    scattered = isinstance(method, GPTQConfig) and method.order == "activation" and not method.static_groups
    order_I = torch.randperm(COLUMNS) if scattered else None
    dead = torch.tensor([3, 4, 90])
    parts = affine_parts(codes_OI, bits, size, scale, zero, order_I=order_I, dead_columns=dead)
    return GroupedAffine.from_parts(parts)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 45])
def test_words_hold_a_little_endian_stream(bits: int, count: int) -> None:
    codes_XN = torch.randint(2**bits, (3, count), dtype=torch.uint8)
    words = pack_words(codes_XN, bits)
    assert words.shape == (3, -(-count * bits // 32)) and words.dtype == torch.int32
    assert [read_stream(row, bits, count) for row in words] == codes_XN.tolist()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_decodes_to_the_calibrated_weight(bits: int, order: Any, group_size: int | None, symmetric: bool) -> None:
    method = GPTQConfig(bits=bits, group_size=group_size, symmetric=symmetric, order=order)
    linear, target = random_linear(method), create_target("gptq", method)
    tensors, config = target.tensors(linear, torch.float16), target.quantization_config([])
    assert config is not None and config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    assert config["desc_act"] == (order == "activation" and group_size is not None)
    assert tensors["qweight"].shape == (COLUMNS * bits // 32, ROWS)
    assert torch.equal(read_weight(tensors, config), linear.dequantize())
    if not config["desc_act"]:
        size = group_size or COLUMNS
        assert tensors["g_idx"].tolist() == [column // size for column in range(COLUMNS)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_quantized_decodes_to_the_calibrated_weight(bits: int, group_size: int | None, symmetric: bool) -> None:
    method = RTNConfig(bits=bits, group_size=group_size, symmetric=symmetric)
    check_pack_quantized(method)


@pytest.mark.parametrize(("group_size", "static_groups"), [(None, False), (32, True)])
def test_pack_quantized_holds_columns_solved_in_activation_order(group_size: int | None, static_groups: bool) -> None:
    check_pack_quantized(GPTQConfig(bits=3, group_size=group_size, static_groups=static_groups, order="activation"))


def check_pack_quantized(method: RTNConfig | GPTQConfig) -> None:
    linear, target = random_linear(method), create_target("pack_quantized", method)
    tensors, config = target.tensors(linear, torch.float16), target.quantization_config([])
    assert config is not None
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    # In float32 their arithmetic does not round either.
    tensors["weight_scale"] = tensors["weight_scale"].float()
    found = BaseCompressor.get_value_from_registry("pack-quantized").decompress(tensors, scheme)
    assert torch.equal(found["weight"], linear.dequantize())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dense_rounds_to_the_type_of_the_checkpoint(dtype: torch.dtype) -> None:
    linear = compress(torch.randn(32, 48), torch.eye(48), SpQRConfig(bits=3))
    tensors = create_target("dense", SpQRConfig()).tensors(linear, dtype)
    assert list(tensors) == ["weight"] and tensors["weight"].dtype == dtype
    assert torch.equal(tensors["weight"], linear.dequantize().to(dtype))


@pytest.mark.parametrize("name", ["pack_quantized", "gptq"])
def test_other_storage_is_not_taken_for_codes_with_whole_zeros(name: Any) -> None:
    linear = compress(torch.randn(32, 32), torch.eye(32), SpQRConfig(bits=3))
    with pytest.raises(ValueError, match="whole zeros"):
        create_target(name, RTNConfig(bits=3)).tensors(linear, torch.float16)
    with pytest.raises(ValueError, match="no place for results of spqr"):
        create_target(name, SpQRConfig())


@pytest.mark.parametrize("bits", [3, 8])
def test_a_dead_column_has_the_code_of_zero(bits: int) -> None:
    linear = random_linear(RTNConfig(bits=bits, group_size=32))
    before = linear.tensors()["codes"].clone()
    affine = AffineCodes.of(linear)
    assert torch.equal(affine.codes_OI[:, 90], affine.zero_OG[:, 2])
    assert not linear.dequantize()[:, 90].any()
    assert torch.equal(linear.tensors()["codes"], before)
