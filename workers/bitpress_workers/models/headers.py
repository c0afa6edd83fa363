"""The headers of safetensors files: which tensors a file holds, and where.

Format: eight bytes of length, little-endian, then so much JSON, then the tensors without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from pydantic import BaseModel, NonNegativeInt, TypeAdapter

from bitpress.errors import CheckpointError
from bitpress_workers.models.sources import File

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor; its bytes begin at `start` of the file."""

    file: File
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int


class _Entry(BaseModel):
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_ENTRIES = TypeAdapter(dict[str, _Entry])


def read_header(file: File) -> dict[str, TensorInfo]:
    """Return a file's tensors by name. Raises CheckpointError when it is malformed, cut off or has an unknown dtype."""
    try:
        length = int.from_bytes(_read(file, 0, LENGTH_BYTES), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(_read(file, LENGTH_BYTES, length))
        if not isinstance(header, dict):
            raise ValueError(f"expected a JSON object as its header, found {type(header).__name__}")
        header.pop("__metadata__", None)
        entries = _ENTRIES.validate_python(header)
        first = LENGTH_BYTES + length
        infos = {name: _tensor_info(file, name, entry, first) for name, entry in entries.items()}
        _check_gaps(infos, first, file.size)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: not a complete safetensors file: {reason}") from error
    return infos


def _read(file: File, start: int, length: int) -> bytes:
    if start + length > file.size:
        raise ValueError(f"it ends after {file.size} bytes, its header after {start + length}")
    content = bytearray(length)
    file.read_into(start, memoryview(content))
    return bytes(content)


def _tensor_info(file: File, name: str, entry: Any, first: int) -> TensorInfo:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(f"{file}: {name} has the dtype {entry.dtype}, which is not read")
    begin, end = entry.data_offsets
    num_bytes = prod(entry.shape) * dtype.itemsize
    if end - begin != num_bytes:
        raise ValueError(f"{name} takes {end - begin} bytes; by its shape and dtype it has {num_bytes}")
    return TensorInfo(file, first + begin, dtype, entry.shape, num_bytes)


def _check_gaps(infos: dict[str, TensorInfo], first: int, size: int) -> None:
    """Tensors lie one after the other: no byte belongs to two, and none to no tensor."""
    spans = sorted((info.start, info.start + info.bytes) for info in infos.values())
    if any(left[1] != right[0] for left, right in pairwise([(first, first), *spans, (size, size)])):
        raise ValueError(f"its tensors do not fill it; it has {size} bytes")
