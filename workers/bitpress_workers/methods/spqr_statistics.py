"""How SpQR keeps the scales and zeros of its groups while it goes through the columns.

A Record takes one number per row for each group, returns what will be read back in its place,
and in the end yields the stored statistic.

Shapes: R rows, G groups, S rows that share a second-level grid, T = ceil(R / S).
"""

from typing import Protocol

import torch
from torch import Tensor

from bitpress.formats import statistics
from bitpress.formats.base import Part
from bitpress.methods import SpQRConfig
from bitpress_workers.numerics.grid import SMALLEST, fit_statistics


class Record(Protocol):
    def keep(self, values_R: Tensor) -> Tensor:
        """Take the numbers of the next group, float32; return them as they will be decoded."""
        ...

    def stored(self) -> Part:
        """Return all groups' numbers as they are stored."""
        ...


def records(config: SpQRConfig, stored_dtype: torch.dtype) -> tuple[Record, Record]:
    """Return the records of scales and zeros.

    Rounded zeros stay as they are when a quantized zero would take as many bits as a weight's code.
    Source: arXiv 2306.03078, section 4, and its published code.
    """
    if config.scale_bits is None or config.zero_bits is None:
        scale: Record = Plain(stored_dtype, smallest=SMALLEST[stored_dtype])
    else:
        scale = Bilevel(config.scale_bits, config.statistics_group_size, stored_dtype)
    zero: Record
    if config.symmetric:
        zero = Constant(2 ** (config.bits - 1))
    elif config.zero_bits is None or (config.round_zero and config.zero_bits >= config.bits):
        zero = Plain(stored_dtype)
    else:
        zero = Bilevel(config.zero_bits, config.statistics_group_size, stored_dtype)
    return scale, zero


class Plain:
    """16 bits a number. smallest: what takes the place of anything that rounds to less."""

    def __init__(self, stored_dtype: torch.dtype, smallest: float | None = None) -> None:
        self._stored_dtype = stored_dtype
        self._smallest = smallest
        self._groups: list[Tensor] = []

    def keep(self, values_R: Tensor) -> Tensor:
        values_R = values_R.to(self._stored_dtype).float()
        if self._smallest is not None:
            values_R.clamp_(min=self._smallest)
        self._groups.append(values_R)
        return values_R

    def stored(self) -> Part:
        return statistics.float16(torch.stack(self._groups, dim=1))


class Constant:
    """All numbers are the same."""

    def __init__(self, value: int) -> None:
        self._value = value

    def keep(self, values_R: Tensor) -> Tensor:
        return values_R

    def stored(self) -> Part:
        return statistics.constant(self._value)


class Bilevel:
    """A code a number, and a grid of the codes for every S consecutive rows; the last S may be fewer."""

    def __init__(self, bits: int, rows: int, stored_dtype: torch.dtype) -> None:
        self._bits = bits
        self._rows = rows
        self._stored_dtype = stored_dtype
        self.codes: list[Tensor] = []
        self.scales: list[Tensor] = []
        self.zeros: list[Tensor] = []

    def keep(self, values_R: Tensor) -> Tensor:
        num_rows = len(values_R)
        # The last row stands in for those that a short last tile lacks, which changes no range.
        missing = -num_rows % self._rows
        values_TS = torch.cat([values_R, values_R[-1:].expand(missing)]).view(-1, self._rows)
        grid = fit_statistics(values_TS, self._bits, scale_dtype=self._stored_dtype)
        codes_TS = grid.encode(values_TS)
        self.codes.append(codes_TS.flatten()[:num_rows].to(torch.uint8))
        self.scales.append(grid.scale.flatten())
        self.zeros.append(grid.zero.flatten())
        return grid.decode(codes_TS).flatten()[:num_rows]

    def stored(self) -> Part:
        codes_RG, scale_TG, zero_TG = (torch.stack(x, dim=1) for x in (self.codes, self.scales, self.zeros))
        return statistics.bilevel(codes_RG, scale_TG, zero_TG, self._bits, self._rows)
