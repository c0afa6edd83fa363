"""What a compressed linear is: a header that is JSON, and the tensors that are stored.

A format stores, a method solves. An object of this class holds nothing but its stored form, so
`stored_bits` counts what is on disk, and `dequantize` reads the very values a loaded model reads.

Shapes: O rows (outputs), I columns (inputs), in their original order unless said otherwise.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from torch import Tensor

from bitpress.errors import ArtifactError, NumericalError

Header = dict[str, Any]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
Part = tuple[Header, dict[str, Tensor]]

MAX_COLUMNS = 65536  # column ids are stored in 16 bits
ROW_MULTIPLE = 8  # parts of so many rows end their bit streams at a whole byte, whatever the bits


class CompressedLinear(ABC):
    """A linear's weight as it is stored; immutable.

    Raises ArtifactError when the tensors are not those that the header's layout names.
    """

    format: ClassVar[str]
    version: ClassVar[int] = 1
    same_for_all_rows: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        expected = self.layout(header)
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if found != expected:
            raise ArtifactError(f"{self.format}: expected tensors {expected}, found {found}")
        self._header = header
        self._tensors = dict(tensors)
        self.shape: tuple[int, int] = (header["shape"][0], header["shape"][1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes as in a file: torch's own pickling does not know 16-bit unsigned tensors.
        return _restore, (type(self), self._header, safetensors.torch.save(self._tensors))

    @classmethod
    @abstractmethod
    def layout(cls, header: Header) -> Layout:
        """Return shape and dtype of every stored tensor, from the header alone."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Return the weight, float32 [O, I]: exactly the values the method calibrated with."""

    @classmethod
    def from_parts(cls, *parts: Part) -> Self:
        """Build from the headers and tensors of the aspects a format is made of."""
        header: Header = {"format": cls.format, "version": cls.version}
        tensors: dict[str, Tensor] = {}
        for part_header, part_tensors in parts:
            header |= part_header
            tensors |= part_tensors
        return cls(header, tensors)

    def header(self) -> Header:
        """Return what is needed besides the tensors; JSON-able."""
        return self._header

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by name."""
        return dict(self._tensors)

    def stored_bits(self) -> int:
        """Count the bits of all stored tensors, statistics, indices and padding included."""
        return sum(8 * tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    @property
    def outlier_fraction(self) -> float:
        """Share of the weights that are kept in 16 bits."""
        return float(self._header.get("nnz", 0)) / (self.shape[0] * self.shape[1])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join parts of one linear along its rows.

        Every part but the last must have a multiple of ROW_MULTIPLE rows.
        """
        first = parts[0]
        if any(part.shape[0] % ROW_MULTIPLE for part in parts[:-1]):
            raise ValueError(
                f"parts must have a multiple of {ROW_MULTIPLE} rows, found {[part.shape[0] for part in parts]}"
            )
        headers = [part.header() | {"shape": None, "nnz": None} for part in parts]
        if any(header != headers[0] for header in headers[1:]):
            raise ValueError("parts of different linears cannot be joined")
        header = first.header() | {"shape": [sum(part.shape[0] for part in parts), first.shape[1]]}
        if "nnz" in header:
            header["nnz"] = sum(part.header()["nnz"] for part in parts)
        stored = [part.tensors() for part in parts]
        return cls(header, {name: cls._join(name, [tensors[name] for tensors in stored]) for name in stored[0]})

    @classmethod
    def _join(cls, name: str, pieces: Sequence[Tensor]) -> Tensor:
        if name not in cls.same_for_all_rows:
            return torch.cat(list(pieces))
        if not all(torch.equal(piece, pieces[0]) for piece in pieces[1:]):
            raise ValueError(f"parts of one linear must share {name!r}")
        return pieces[0]


def _restore(cls: type[CompressedLinear], header: Header, data: bytes) -> CompressedLinear:
    return cls(header, safetensors.torch.load(data))


def check_header(header: Header, format_name: str, version: int) -> tuple[int, int]:
    """Return the shape [O, I] of a header written by this version of a format. Raises ArtifactError."""
    if (header.get("format"), header.get("version")) != (format_name, version):
        found = f"{header.get('format')!r} version {header.get('version')!r}"
        raise ArtifactError(f"expected format {format_name!r} version {version}, found {found}")
    rows, columns = header["shape"]
    if columns > MAX_COLUMNS:
        raise ArtifactError(f"expected at most {MAX_COLUMNS} columns, found {columns}")
    return rows, columns


def to_float16(values: Tensor, what: str) -> Tensor:
    """Store numbers in 16 bits. Raises NumericalError when one is not finite there."""
    stored = values.to(torch.float16)
    if not bool(torch.isfinite(stored).all()):
        raise NumericalError(f"{what} does not fit into 16 bits")
    return stored
