"""The published SpQR packing, one 64-bit word for 16 weights of a row, made from what an artifact stores.

Bits 0-2 hold the scale's code, 3-5 the zero's, 6 + 3l the code of weight l, 54-61 one byte of the tile's
second level: row k carries byte k // 2 of the 64-bit word of float16 (ss, zs, sz, zz). 3 bits, 16 x 16 tiles.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitpress.formats.bitpack import unpack


def words(tensors: Mapping[str, Tensor], rows: int, columns: int) -> list[list[list[int]]]:
    """Return words[row tile][column tile][row in tile] of a 3-bit weight in groups of 16 with two-level statistics."""
    groups = columns // 16
    codes = unpack(tensors["codes"], 3, columns).view(rows, groups, 16)
    scale_codes, zero_codes = (
        unpack(tensors[f"{name}_codes"], 3, rows * groups).view(rows, groups) for name in ("scale", "zero")
    )
    result = []
    for tile in range(rows // 16):
        row_of_tiles = []
        for group in range(groups):
            numbers = (tensors[name][tile, group] for name in ("scale_scale", "zero_scale", "scale_zero", "zero_zero"))
            second = b"".join(number.numpy().tobytes() for number in numbers)
            packed = []
            for k in range(16):
                row = 16 * tile + k
                word = int(scale_codes[row, group]) | int(zero_codes[row, group]) << 3 | second[k // 2] << 54
                for place, code in enumerate(codes[row, group].tolist()):
                    word |= code << (6 + 3 * place)
                packed.append(word)
            row_of_tiles.append(packed)
        result.append(row_of_tiles)
    return result


def decode(word_tile: list[int]) -> Tensor:
    """Return the weights of a tile, float16 [16, 16], each operation rounded to 16 bits as in the published kernel."""
    second = bytes((word_tile[2 * t] >> 54) & 0xFF for t in range(8))
    ss, zs, sz, zz = torch.frombuffer(bytearray(second), dtype=torch.float16)
    rows = []
    for word in word_tile:
        scale = ss * (torch.tensor(float(word & 7)).half() - sz)
        zero = zs * (torch.tensor(float(word >> 3 & 7)).half() - zz)
        codes = torch.tensor([float(word >> (6 + 3 * place) & 7) for place in range(16)]).half()
        rows.append(scale * (codes - zero))
    return torch.stack(rows)
