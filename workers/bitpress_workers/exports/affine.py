"""What other systems share with `GroupedAffine`: codes on a grid per row and group, as plain tensors.

Shapes: O rows, I columns as they lie in the weight, G groups, N codes of one stream.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bitpress.formats import CompressedLinear, GroupedAffine, statistics
from bitpress.formats.bitpack import pack, unpack

WORD_BYTES = 4
WHOLE = ("integer", "constant")


@dataclass(frozen=True)
class AffineCodes:
    """weight[o, i] = scale[o, group[i]] * (code[o, i] - zero[o, group[i]]), exactly.

    codes_OI: uint8; scale_OG: float16; zero_OG: uint8, a code; group_I: int32.
    """

    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor
    group_I: Tensor

    @classmethod
    def of(cls, linear: CompressedLinear) -> "AffineCodes":
        """Read a linear whose zeros are whole. Raises ValueError for any other.

        Dead columns get the code of zero, which decodes to the 0 that they stand for.
        """
        header, tensors = linear.header(), linear.tensors()
        if not isinstance(linear, GroupedAffine) or header["zero"]["kind"] not in WHOLE:
            raise ValueError(f"expected codes with whole zeros, found {header}")
        (rows, columns), size = linear.shape, header["group_size"]
        groups = -(-columns // size)
        zero = statistics.decode(header["zero"], "zero", tensors, rows, groups)
        zero_OG = torch.as_tensor(zero, dtype=torch.float32).expand(rows, groups).to(torch.uint8)
        codes_OI = unpack(tensors["codes"], header["bits"], columns)
        group_I = torch.arange(columns, dtype=torch.int32) // size
        if header["num_dead"]:
            dead = tensors["dead_columns"].to(torch.int64)
            codes_OI = codes_OI.index_copy(1, dead, zero_OG[:, dead // size])
        if header["order"]:
            position_I = torch.argsort(tensors["order"].to(torch.int64))
            codes_OI, group_I = codes_OI.index_select(1, position_I), group_I[position_I]
        return cls(codes_OI, tensors["scale"], zero_OG, group_I)


def pack_words(codes_XN: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension into little-endian 32-bit words.

    The bit stream of `bitpress.formats.bitpack`, its end padded to a whole word.
    codes_XN: uint8 [X, N]. Returns int32 [X, ceil(N * bits / 32)].
    """
    packed = pack(codes_XN, bits)
    return functional.pad(packed, (0, -packed.shape[-1] % WORD_BYTES)).view(torch.int32)
