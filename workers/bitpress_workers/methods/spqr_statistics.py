"""How SpQR keeps the scales and zeros of its groups while it goes through the columns.

A Record takes one number per row for each group, returns what will be read back in its place,
and in the end yields the stored statistic.

Shapes: R rows, G groups, S rows that share a second-level grid, T = ceil(R / S).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from bitpress.formats import statistics
from bitpress.formats.base import Part
from bitpress.methods import SpQRConfig
from bitpress_workers.numerics.grid import SMALLEST
from bitpress_workers.numerics.kernels import quantize_statistics


class Record(Protocol):
    def keep(self, values_R: Tensor) -> Tensor:
        """Take the numbers of the next group, float32; return them as they will be decoded."""
        ...

    def stored(self) -> list[Part]:
        """Return all groups' numbers as they are stored, linear by linear."""
        ...


def records(
    config: SpQRConfig, stored_dtype: torch.dtype, counts: Sequence[int], device: torch.device
) -> tuple[Record, Record]:
    """Return the records of scales and zeros, kept on a device; counts: rows of each linear.

    Rounded zeros stay as they are when a quantized zero would take as many bits as a weight's code.
    Source: arXiv 2306.03078, section 4, and its published code.
    """
    if config.scale_bits is None or config.zero_bits is None:
        scale: Record = Plain(counts, stored_dtype, smallest=SMALLEST[stored_dtype])
    else:
        scale = Bilevel(counts, config.scale_bits, config.statistics_group_size, stored_dtype, device)
    zero: Record
    if config.symmetric:
        zero = Constant(counts, 2 ** (config.bits - 1))
    elif config.zero_bits is None or (config.round_zero and config.zero_bits >= config.bits):
        zero = Plain(counts, stored_dtype)
    else:
        zero = Bilevel(counts, config.zero_bits, config.statistics_group_size, stored_dtype, device)
    return scale, zero


class Plain:
    """16 bits a number. smallest: what takes the place of anything that rounds to less."""

    def __init__(self, counts: Sequence[int], stored_dtype: torch.dtype, smallest: float | None = None) -> None:
        self._counts = list(counts)
        self._stored_dtype = stored_dtype
        self._smallest = smallest
        self._groups: list[Tensor] = []

    def keep(self, values_R: Tensor) -> Tensor:
        values_R = values_R.to(self._stored_dtype).float()
        if self._smallest is not None:
            values_R.clamp_(min=self._smallest)
        self._groups.append(values_R)
        return values_R

    def stored(self) -> list[Part]:
        return [statistics.float16(values_RG) for values_RG in torch.stack(self._groups, dim=1).split(self._counts)]


class Constant:
    """All numbers are the same."""

    def __init__(self, counts: Sequence[int], value: int) -> None:
        self._counts = counts
        self._value = value

    def keep(self, values_R: Tensor) -> Tensor:
        return values_R

    def stored(self) -> list[Part]:
        return [statistics.constant(self._value) for _ in self._counts]


class Bilevel:
    """A code a number, and a grid of the codes for every S consecutive rows of a linear; its last S may be fewer."""

    def __init__(
        self, counts: Sequence[int], bits: int, rows: int, stored_dtype: torch.dtype, device: torch.device
    ) -> None:
        self._counts = list(counts)
        self._tiles = [-(-count // rows) for count in counts]
        self._bits = bits
        self._rows = rows
        self._stored_dtype = stored_dtype
        self._index_TS = self._tiling().to(device)
        self.codes: list[Tensor] = []
        self.scales: list[Tensor] = []
        self.zeros: list[Tensor] = []

    def keep(self, values_R: Tensor) -> Tensor:
        codes_R, decoded_R, grid = quantize_statistics(
            values_R, self._index_TS, self._bits, scale_dtype=self._stored_dtype
        )
        self.codes.append(codes_R)
        self.scales.append(grid.scale)
        self.zeros.append(grid.zero)
        return decoded_R

    def _tiling(self) -> Tensor:
        """Return the rows of each tile, [T, S].

        A linear's last row also stands for those that its short last tile lacks, which changes no range.
        """
        index: list[int] = []
        first = 0
        for count, tiles in zip(self._counts, self._tiles, strict=True):
            index += [first + min(row, count - 1) for row in range(tiles * self._rows)]
            first += count
        return torch.tensor(index).view(-1, self._rows)

    def stored(self) -> list[Part]:
        codes_RG, scale_TG, zero_TG = (torch.stack(x, dim=1) for x in (self.codes, self.scales, self.zeros))
        by_linear = zip(
            codes_RG.split(self._counts), scale_TG.split(self._tiles), zero_TG.split(self._tiles), strict=True
        )
        return [statistics.bilevel(*parts, self._bits, self._rows) for parts in by_linear]
