"""How large an artifact's safetensors files will be, to the byte, from shapes and the method's parameters.

What only the data decide is assumed: no column is dead, no two importances are alike, and of SpQR's
outliers there are ASSUMED_OUTLIERS.
"""

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import floor, prod

import torch

from bitpress.exports import has_scattered_groups
from bitpress.formats import CompressedLinear, GroupedAffine, Header, OutlierGrouped, SalientBinary
from bitpress.methods import GPTQConfig, MethodConfig, PTQ161Config, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes

ASSUMED_OUTLIERS = 0.01  # of SpQR's weights; its paper keeps about 1 % (arXiv 2306.03078, section 5)

# By descending alignment, as safetensors lays tensors out (https://github.com/huggingface/safetensors).
DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ORDER = {dtype: number for number, dtype in enumerate(DTYPES)}

Form = tuple[type[CompressedLinear], Header]
Tensors = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def stored_bits(config: MethodConfig, shape: tuple[int, int]) -> int:
    """Bits that one linear [O, I] will take, as `CompressedLinear.stored_bits` counts them."""
    return 8 * sum(_num_bytes(*tensor) for tensor in _layout(config, shape).values())


def block_bytes(config: MethodConfig, block: BlockSizes) -> int:
    """Size of a published block's file."""
    headers: dict[str, Header] = {}
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    rest = {name: (tensor.shape, tensor.dtype) for name, tensor in block.tensors.items()}
    for linear, shape in block.linears.items():
        name = f"{block.name}.{linear}"
        del rest[f"{name}.weight"]
        headers[name] = stored_form(config, shape)[1]
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in _layout(config, shape).items()}
    return _file_bytes(tensors | rest, headers)


def outer_bytes(sizes: ModelSizes) -> int:
    """Size of the file of what lies outside the blocks."""
    return _file_bytes({name: (tensor.shape, tensor.dtype) for name, tensor in sizes.outer.items()}, {})


def stored_form(config: MethodConfig, shape: tuple[int, int]) -> Form:
    """The format that a method stores a linear [O, I] in, and the header it will write."""
    match config:
        case RTNConfig():
            return GroupedAffine, _affine(config, shape, order=False)
        case GPTQConfig():
            order = config.order == "activation" and has_scattered_groups(config)
            return GroupedAffine, _affine(config, shape, order=order)
        case SpQRConfig():
            return _spqr(config, shape)
        case SEPTQConfig():
            kept = floor(Fraction(str(config.retained_percent)) * prod(shape) / 100) + 1
            codes = _codes("outlier_grouped", config.bits, shape, shape[1]) | _integer_zero(config.bits, False)
            return OutlierGrouped, codes | {"nnz": kept, "outliers": "add" if config.layered else "replace"}
        case PTQ161Config():
            salient = min(int(shape[1] * config.salient_percent / 100) + 1, shape[1])
            header = {"shape": list(shape), "bits": config.salient_bits, "num_salient": salient}
            return SalientBinary, {"format": "salient_binary", "version": 1} | header


def _affine(config: RTNConfig | GPTQConfig, shape: tuple[int, int], *, order: bool) -> Header:
    codes = _codes("grouped_affine", config.bits, shape, config.group_size)
    return codes | _integer_zero(config.bits, config.symmetric) | {"order": order}


def _codes(name: str, bits: int, shape: tuple[int, int], group_size: int | None) -> Header:
    size = min(group_size or shape[1], shape[1])
    header: Header = {"format": name, "version": 1, "shape": list(shape), "bits": bits, "group_size": size}
    return header | {"order": False, "num_dead": 0}


def _integer_zero(bits: int, symmetric: bool) -> Header:
    zero = {"kind": "constant", "value": 2 ** (bits - 1)} if symmetric else {"kind": "integer", "bits": bits}
    return {"scale": {"kind": "float16"}, "zero": zero}


def _spqr(config: SpQRConfig, shape: tuple[int, int]) -> Form:
    plain: Header = {"kind": "float16"}
    scale, zero, rows = plain, plain, config.statistics_group_size
    if config.scale_bits is not None and config.zero_bits is not None:
        scale, zero = ({"kind": "bilevel", "bits": b, "rows": rows} for b in (config.scale_bits, config.zero_bits))
        if config.round_zero and config.zero_bits >= config.bits:
            zero = plain
    if config.symmetric:
        zero = {"kind": "constant", "value": 2 ** (config.bits - 1)}
    kind = GroupedAffine if config.outlier_threshold is None else OutlierGrouped
    header = _codes(kind.format, config.bits, shape, config.group_size) | {"scale": scale, "zero": zero}
    header["order"] = config.order == "activation"
    if kind is OutlierGrouped:
        header |= {"nnz": round(ASSUMED_OUTLIERS * prod(shape)), "outliers": "replace"}
    return kind, header


def _layout(config: MethodConfig, shape: tuple[int, int]) -> Tensors:
    form, header = stored_form(config, shape)
    return form.layout(header)


def _num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize


def _file_bytes(tensors: Tensors, headers: Mapping[str, Header]) -> int:
    """Length of the safetensors file: 8 bytes, a JSON header padded to a multiple of 8, the tensors."""
    metadata = {"bitpress": json.dumps(headers, sort_keys=True)}
    entries: dict[str, object] = {"__metadata__": metadata} | dict(_entries(tensors))
    header = len(json.dumps(entries, separators=(",", ":")))
    return 8 + header + -header % 8 + sum(_num_bytes(*tensor) for tensor in tensors.values())


def _entries(tensors: Tensors) -> Iterator[tuple[str, object]]:
    start = 0
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (ORDER[item[1][1]], item[0])):
        stop = start + _num_bytes(shape, dtype)
        yield name, {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
