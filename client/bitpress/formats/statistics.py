"""How scales and zeros are stored: one number for each row and group of columns.

Four kinds, each named in the header by a small dictionary:

  float16   16 bits a number
  integer   `bits` bits a number, 0 .. 2**bits - 1
  constant  nothing stored: every number is `value`
  bilevel   a code of `bits` bits a number, and for `rows` consecutive rows of a group a float16
            scale and zero of these codes: number = scale * (code - zero)  (SpQR, arXiv 2306.03078, section 4)

Shapes: O rows, G groups of columns, T = ceil(O / rows) tiles of rows that share a bilevel grid.
The tensors of a part are named by what follows the statistic's name. Codes form one bit stream
over all rows and groups, so only its very end is padded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitpress.errors import ArtifactError
from bitpress.formats.base import Header, Layout, Part, to_float16
from bitpress.formats.bitpack import pack, packed_bytes, unpack


def float16(values_OG: Tensor) -> Part:
    """Store numbers that are float16 already (any float dtype)."""
    return {"kind": "float16"}, {"": to_float16(values_OG, "a scale or zero")}


def integer(values_OG: Tensor, bits: int) -> Part:
    """Store whole numbers of 0 .. 2**bits - 1."""
    return {"kind": "integer", "bits": bits}, {"": pack(values_OG.to(torch.uint8).flatten(), bits)}


def constant(value: float) -> Part:
    """Store nothing: all numbers are `value`."""
    return {"kind": "constant", "value": value}, {}


def of_integer_zero(scale_OG: Tensor, zero_OG: Tensor, bits: int, *, symmetric: bool) -> tuple[Part, Part]:
    """Store scales that are float16 already, and whole zeros of `bits` bits; those of a symmetric grid are known."""
    return float16(scale_OG), constant(2 ** (bits - 1)) if symmetric else integer(zero_OG, bits)


def bilevel(codes_OG: Tensor, scale_TG: Tensor, zero_TG: Tensor, bits: int, rows: int) -> Part:
    """Store codes, uint8, and the float16 grid of every `rows` rows of a group."""
    tensors = {
        "_codes": pack(codes_OG.flatten(), bits),
        "_scale": to_float16(scale_TG, "a scale of statistics"),
        "_zero": to_float16(zero_TG, "a zero of statistics"),
    }
    return {"kind": "bilevel", "bits": bits, "rows": rows}, tensors


def layout(header: Header, name: str, rows: int, groups: int) -> Layout:
    """Return shape and dtype of the tensors of a statistic called `name`. Raises ArtifactError."""
    kind = header["kind"]
    if kind == "float16":
        return {name: ((rows, groups), torch.float16)}
    if kind == "integer":
        return {name: ((packed_bytes(rows * groups, header["bits"]),), torch.uint8)}
    if kind == "constant":
        return {}
    if kind == "bilevel":
        grid = (-(-rows // header["rows"]), groups)
        return {
            f"{name}_codes": ((packed_bytes(rows * groups, header["bits"]),), torch.uint8),
            f"{name}_scale": (grid, torch.float16),
            f"{name}_zero": (grid, torch.float16),
        }
    raise ArtifactError(f"no kind of statistic is called {kind!r}")


def decode(header: Header, name: str, tensors: Mapping[str, Tensor], rows: int, groups: int) -> Tensor | float:
    """Return the numbers, float32 [O, G], or the one number that all are."""
    kind = header["kind"]
    if kind == "constant":
        return float(header["value"])
    if kind == "float16":
        return tensors[name].float()
    stream = tensors[name if kind == "integer" else f"{name}_codes"]
    values_OG = unpack(stream, header["bits"], rows * groups).view(rows, groups).float()
    if kind == "integer":
        return values_OG
    scale, zero = (
        tensors[f"{name}_{part}"].float().repeat_interleave(header["rows"], dim=0)[:rows] for part in ("scale", "zero")
    )
    return values_OG.sub_(zero).mul_(scale)
