"""Codes on a grid per row and group of columns: value = scale * (code - zero).

Stored tensors of an [O, I] weight, columns in the order they were solved in:

  codes         uint8 [O, ceil(I * bits / 8)], a bit stream per row
  scale*, zero* one number per row and group; see `statistics`
  order         uint16 [I], only if not natural: column k of the codes is column order[k] of the weight
  dead_columns  uint16 [num_dead], only if there are any: columns of the codes whose weights are 0

The last group is short where the group size does not divide I. Padding: up to 7 bits at the end
of each row of codes and of each stream of statistics, nothing else.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from bitpress.formats import statistics
from bitpress.formats.base import CompressedLinear, Header, Layout, Part, check_header
from bitpress.formats.bitpack import pack, packed_bytes, unpack


class GroupedAffine(CompressedLinear):
    """Every weight is a code; what RTN and GPTQ produce."""

    format = "grouped_affine"
    same_for_all_rows = frozenset({"order", "dead_columns"})

    @classmethod
    def layout(cls, header: Header) -> Layout:
        rows, columns = check_header(header, cls.format, cls.version)
        groups = -(-columns // header["group_size"])
        layout: Layout = {"codes": ((rows, packed_bytes(columns, header["bits"])), torch.uint8)}
        for name in ("scale", "zero"):
            layout |= statistics.layout(header[name], name, rows, groups)
        if header["order"]:
            layout["order"] = ((columns,), torch.uint16)
        if header["num_dead"]:
            layout["dead_columns"] = ((header["num_dead"],), torch.uint16)
        return layout

    def dequantize(self) -> Tensor:
        return self._natural(self._grid_values())

    def _grid_values(self) -> Tensor:
        """Return the codes' values, float32 [O, I], in solve order."""
        header, tensors = self._header, self._tensors
        (rows, columns), size = self.shape, header["group_size"]
        groups = -(-columns // size)
        codes = unpack(tensors["codes"], header["bits"], columns)
        values = functional.pad(codes, (0, groups * size - columns)).float().view(rows, groups, size)
        for name, apply in (("zero", values.sub_), ("scale", values.mul_)):
            statistic = statistics.decode(header[name], name, tensors, rows, groups)
            apply(statistic.unsqueeze(-1) if isinstance(statistic, Tensor) else statistic)
        values = values.view(rows, groups * size)[:, :columns]
        if header["num_dead"]:
            values[:, tensors["dead_columns"].to(torch.int64)] = 0
        return values

    def _natural(self, values_OI: Tensor) -> Tensor:
        if not self._header["order"]:
            return values_OI.contiguous()
        order = self._tensors["order"].to(torch.int64)
        return values_OI.index_select(1, torch.argsort(order))  # many times faster than indexing


def affine_parts(
    codes_OI: Tensor,
    bits: int,
    group_size: int,
    scale: Part,
    zero: Part,
    *,
    order_I: Tensor | None = None,
    dead_columns: Tensor | None = None,
) -> Part:
    """Return header and tensors of codes on their grid.

    codes_OI: uint8 [O, I] in solve order; order_I: int64 [I] or None for natural;
    dead_columns: int64, positions in solve order whose weights are 0, or None.
    """
    header: Header = {
        "shape": list(codes_OI.shape),
        "bits": bits,
        "group_size": group_size,
        "scale": scale[0],
        "zero": zero[0],
        "order": order_I is not None,
        "num_dead": 0 if dead_columns is None else len(dead_columns),
    }
    tensors = {"codes": pack(codes_OI, bits)}
    tensors |= _prefixed("scale", scale[1]) | _prefixed("zero", zero[1])
    if order_I is not None:
        tensors["order"] = order_I.to(torch.uint16)
    if header["num_dead"] and dead_columns is not None:
        tensors["dead_columns"] = dead_columns.to(torch.uint16)
    return header, tensors


def _prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name + suffix: tensor for suffix, tensor in tensors.items()}
