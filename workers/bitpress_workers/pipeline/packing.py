"""A value taken apart into its structure, a few bytes, and its tensors, which travel for themselves.

The structure is pickled, and rebuilt only from classes of Bitpress: what is read came from a shard
of the same job, but over a network. Of a symmetric or triangular matrix only the blocks on and above
the diagonal are taken; a Gram holds no others.

Shapes: I columns.
"""

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitpress.formats import CompressedLinear, Header
from bitpress_workers.numerics.hessian import Factor
from bitpress_workers.numerics.triangular import blocks_of

PACKAGES = {"bitpress", "bitpress_workers"}


def flatten(value: Any) -> tuple[bytes, list[Tensor]]:
    """Take a value apart; the tensors are its own, or views of them."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.tensors


def rebuild(structure: bytes, tensors: Sequence[Tensor]) -> Any:
    """Put a value together. Raises UnpicklingError for a class that is not of Bitpress."""
    return _Unpickler(io.BytesIO(structure), tensors).load()


@dataclass(frozen=True)
class TensorType:
    """What is needed to receive a tensor: dtype by name, shape, and whether an accelerator holds it."""

    dtype: str
    shape: tuple[int, ...]
    on_accelerator: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorType":
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.device.type != "cpu")

    def empty(self, device: torch.device) -> Tensor:
        """Room for such a tensor, on `device` or in the host's memory."""
        return torch.empty(
            self.shape, dtype=getattr(torch, self.dtype), device=device if self.on_accelerator else "cpu"
        )


def header_of(structure: bytes, tensors: Sequence[Tensor]) -> bytes:
    """All that a receiver needs but the tensors' bytes."""
    types = [TensorType.of(tensor) for tensor in tensors]
    listed = [[kind.dtype, kind.shape, kind.on_accelerator] for kind in types]
    return json.dumps(listed).encode() + b"\n" + structure


def read_header(header: bytes) -> tuple[bytes, list[TensorType]]:
    """Return a value's structure and the types of its tensors."""
    listed, _, structure = header.partition(b"\n")
    return structure, [TensorType(dtype, tuple(shape), there) for dtype, shape, there in json.loads(listed)]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []

    def persistent_id(self, item: Any) -> int | None:
        if not isinstance(item, Tensor):
            return None
        self.tensors.append(item)
        return len(self.tensors) - 1

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, Factor):
            rest = (item.order_I, item.dead_I, item.damping_used, item.num_tokens)
            return _factor, (_upper_blocks(item.upper_II), *rest)
        if isinstance(item, CompressedLinear):
            return _linear, (type(item), item.header(), item.tensors())
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        return self._tensors[number]

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in PACKAGES or "." in name:
            raise pickle.UnpicklingError(f"{module}.{name} is no class of Bitpress")
        return super().find_class(module, name)


def _upper_blocks(matrix_II: Tensor) -> list[Tensor]:
    return [matrix_II[rows, rows.start :] for rows in blocks_of(len(matrix_II), matrix_II.device)]


def _matrix(blocks: Sequence[Tensor]) -> Tensor:
    """Zero below the diagonal's blocks."""
    num_columns = blocks[0].shape[1] if blocks else 0
    matrix_II = torch.zeros(num_columns, num_columns, device=blocks[0].device if blocks else None)
    start = 0
    for block in blocks:
        matrix_II[start : start + len(block), start:] = block
        start += len(block)
    return matrix_II


def _factor(
    blocks: Sequence[Tensor], order_I: Tensor | None, dead_I: Tensor, damping_used: float | None, num_tokens: int
) -> Factor:
    upper_II = _matrix(blocks).to(dead_I.device)  # of a method that solves without it, there is no block to tell
    return Factor(upper_II, order_I, dead_I, damping_used, num_tokens)


def _linear(kind: type[CompressedLinear], header: Header, tensors: dict[str, Tensor]) -> CompressedLinear:
    return kind(header, tensors)
