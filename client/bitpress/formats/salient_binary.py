"""One sign for most weights; codes of a few bits for the salient columns.

Stored tensors of an [O, I] weight of which K columns are salient:

  salient_columns  uint8 [ceil(I / 8)], a bitmap: bit j is set where column j is salient
  salient_codes    uint8 [O, ceil(K * bits / 8)], a bit stream per row, salient columns ascending
  salient_scale    float16 [O, 1], and
  salient_zero     uint8 [ceil(O * bits / 8)]: a weight is salient_scale * (code - salient_zero)
  signs            uint8 [O, ceil((I - K) / 8)], a bit stream per row, 1 for +1 and 0 for -1
  row_scale        float16 [O], and
  row_mean         float16 [O], and
  column_scale     float16 [I - K]: a weight is column_scale * (row_mean + sign * row_scale)

Both products are formed in float32, the brackets first. A sign is +1 or -1: a weight equal to its
row's mean, of which published code keeps a third sign 0, is stored as +1.

PTQ1.61 (arXiv 2502.13179) trains a scale and a rotation of every row; only their products are
stored. Padding: up to 7 bits at the end of each stream, nothing else. At 4096 x 4096 with 20 % of
the columns in 4 bits that is 1.618 bits a weight.
"""

import torch
from torch import Tensor

from bitpress.formats.base import CompressedLinear, Header, Layout, Part, check_header, to_float16
from bitpress.formats.bitpack import pack, packed_bytes, unpack


class SalientBinary(CompressedLinear):
    """Signs, and codes for the salient columns; what PTQ1.61 produces."""

    format = "salient_binary"
    same_for_all_rows = frozenset({"salient_columns", "column_scale"})

    @classmethod
    def layout(cls, header: Header) -> Layout:
        rows, columns = check_header(header, cls.format, cls.version)
        salient, bits = header["num_salient"], header["bits"]
        return {
            "salient_columns": ((packed_bytes(columns, 1),), torch.uint8),
            "salient_codes": ((rows, packed_bytes(salient, bits)), torch.uint8),
            "salient_scale": ((rows, 1), torch.float16),
            "salient_zero": ((packed_bytes(rows, bits),), torch.uint8),
            "signs": ((rows, packed_bytes(columns - salient, 1)), torch.uint8),
            "row_scale": ((rows,), torch.float16),
            "row_mean": ((rows,), torch.float16),
            "column_scale": ((columns - salient,), torch.float16),
        }

    def dequantize(self) -> Tensor:
        salient_I = unpack(self._tensors["salient_columns"], 1, self.shape[1]).bool()
        order_I = torch.cat([salient_I.nonzero(), (~salient_I).nonzero()]).flatten()
        values_OI = torch.cat([self._salient_values(), self._signed_values()], dim=1)
        return values_OI.index_select(1, torch.argsort(order_I))

    def _salient_values(self) -> Tensor:
        bits, tensors = self._header["bits"], self._tensors
        codes_OK = unpack(tensors["salient_codes"], bits, self._header["num_salient"])
        zero_O1 = unpack(tensors["salient_zero"], bits, self.shape[0]).unsqueeze(1)
        return codes_OK.float().sub_(zero_O1).mul_(tensors["salient_scale"].float())

    def _signed_values(self) -> Tensor:
        tensors = self._tensors
        count = self.shape[1] - self._header["num_salient"]
        positive_ON = unpack(tensors["signs"], 1, count).bool()
        scale_O1, mean_O1 = (tensors[name].float().unsqueeze(1) for name in ("row_scale", "row_mean"))
        return torch.where(positive_ON, mean_O1 + scale_O1, mean_O1 - scale_O1).mul_(tensors["column_scale"].float())


def salient_parts(salient_I: Tensor, codes_OK: Tensor, bits: int, scale_O1: Tensor, zero_O1: Tensor) -> Part:
    """Return header and tensors of the K salient columns.

    salient_I: bool. codes_OK: uint8. scale_O1, zero_O1: the grid of each row, float16 and whole
    numbers, in any float dtype. Raises NumericalError when a scale does not fit into 16 bits.
    """
    rows, salient = codes_OK.shape
    header: Header = {"shape": [rows, len(salient_I)], "bits": bits, "num_salient": salient}
    return header, {
        "salient_columns": pack(salient_I.to(torch.uint8), 1),
        "salient_codes": pack(codes_OK, bits),
        "salient_scale": to_float16(scale_O1, "a scale"),
        "salient_zero": pack(zero_O1.to(torch.uint8).flatten(), bits),
    }


def sign_parts(positive_ON: Tensor, row_scale_O: Tensor, row_mean_O: Tensor, column_scale_N: Tensor) -> Part:
    """Return what the N other columns, in ascending order, add to header and tensors.

    positive_ON: bool. The rest is float32 and rounded to float16. Raises NumericalError when a
    number does not fit into 16 bits.
    """
    return {}, {
        "signs": pack(positive_ON.to(torch.uint8), 1),
        "row_scale": to_float16(row_scale_O, "the scale of a row"),
        "row_mean": to_float16(row_mean_O, "the mean of a row"),
        "column_scale": to_float16(column_scale_N, "the scale of a column"),
    }
