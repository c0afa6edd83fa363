"""Storage formats of compressed linears: pack, describe, dequantize; never solve."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bitpress.errors import ArtifactError
from bitpress.formats.base import CompressedLinear, Header, Layout
from bitpress.formats.grouped_affine import GroupedAffine
from bitpress.formats.outlier_grouped import OutlierGrouped
from bitpress.formats.salient_binary import SalientBinary

__all__ = [
    "CompressedLinear", "GroupedAffine", "Header", "Layout", "OutlierGrouped", "SalientBinary", "concatenate",
    "from_tensors", "layout",
]  # fmt: skip

FORMATS: dict[str, type[CompressedLinear]] = {cls.format: cls for cls in (GroupedAffine, OutlierGrouped, SalientBinary)}


def layout(header: Header) -> Layout:
    """Return shape and dtype of every tensor that the header announces. Raises ArtifactError."""
    try:
        return _format_of(header).layout(header)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"not a header of a compressed linear: {error!r}") from error


def from_tensors(header: Header, tensors: Mapping[str, Tensor]) -> CompressedLinear:
    """Rebuild a compressed linear from what was stored. Raises ArtifactError when the two do not match."""
    return _format_of(header)(header, tensors)


def concatenate(parts: Sequence[CompressedLinear]) -> CompressedLinear:
    """Join parts of one linear, in row order; every part but the last has a multiple of ROW_MULTIPLE rows."""
    return type(parts[0]).concatenate(parts)


def _format_of(header: Header) -> type[CompressedLinear]:
    name = header.get("format")
    if name not in FORMATS:
        raise ArtifactError(f"no storage format is called {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]
