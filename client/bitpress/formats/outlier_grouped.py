"""Codes on a grid, and a few weights in 16 bits that replace the value of their code.

Beyond the tensors of `grouped_affine`, in compressed sparse rows, columns in solve order:

  outlier_row_offsets  int32 [O + 1]
  outlier_columns      uint16 [nnz], ascending within a row
  outlier_values       float16 [nnz]

Outliers replace: where the grid's zero is a real number, the code under an outlier does not decode
to 0, and adding the weight itself would deploy something else than was calibrated. On grids with a
whole zero they may be stored to be added, so that y = Qx + Px can be computed in two parts.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from bitpress.errors import ArtifactError
from bitpress.formats.base import Header, Layout, Part, to_float16
from bitpress.formats.grouped_affine import GroupedAffine

Semantics = Literal["replace", "add"]


class OutlierGrouped(GroupedAffine):
    """Codes, and outliers that replace them; what SpQR and SEPTQ produce."""

    format = "outlier_grouped"

    @classmethod
    def layout(cls, header: Header) -> Layout:
        layout = super().layout(header)
        if header["outliers"] not in get_args(Semantics):
            raise ArtifactError(f"expected outliers that replace or add, found {header['outliers']!r}")
        return layout | {
            "outlier_row_offsets": ((header["shape"][0] + 1,), torch.int32),
            "outlier_columns": ((header["nnz"],), torch.uint16),
            "outlier_values": ((header["nnz"],), torch.float16),
        }

    def dequantize(self) -> Tensor:
        values = self._grid_values()
        tensors = self._tensors
        offsets = tensors["outlier_row_offsets"].to(torch.int64)
        rows = torch.repeat_interleave(offsets.diff(), output_size=self._header["nnz"])
        where = (rows, tensors["outlier_columns"].to(torch.int64))
        values.index_put_(where, tensors["outlier_values"].float(), accumulate=self._header["outliers"] == "add")
        return self._natural(values)

    @classmethod
    def _join(cls, name: str, pieces: Sequence[Tensor]) -> Tensor:
        if name != "outlier_row_offsets":
            return super()._join(name, pieces)
        counts = torch.cat([piece.diff() for piece in pieces])
        return _offsets(counts)


def outlier_parts(mask_OI: Tensor, values_OI: Tensor, semantics: Semantics = "replace") -> Part:
    """Return what outliers add to header and tensors.

    mask_OI: bool, True where the weight is kept; values_OI: float, any value elsewhere. Both in solve order.
    semantics: "add" only where the code under every outlier stands for exactly 0.
    """
    header: Header = {"nnz": int(mask_OI.sum()), "outliers": semantics}
    tensors = {
        "outlier_row_offsets": _offsets(mask_OI.sum(dim=1)),
        "outlier_columns": mask_OI.nonzero()[:, 1].to(torch.uint16),
        "outlier_values": to_float16(values_OI[mask_OI], "an outlier"),
    }
    return header, tensors


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
