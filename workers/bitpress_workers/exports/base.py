"""The seam between a target's layout and the directory it lies in."""

from typing import Any, Protocol

import torch
from torch import Tensor

from bitpress.exports import Export
from bitpress.formats import CompressedLinear


class Target(Protocol):
    """One layout, for results of one method."""

    name: Export

    @property
    def note(self) -> str:
        """What a reader of the directory has to know; goes into its README.md."""
        ...

    def refusal(self, shape: tuple[int, ...], routed: bool) -> str | None:
        """Say why a linear [out, in] has no place in this layout; None when it has. routed: it belongs to an expert."""
        ...

    def tensors(self, linear: CompressedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what takes the place of `weight`, by the last part of its name.

        dtype: of the weight in the checkpoint.
        """
        ...

    def quantization_config(self, other_linears: list[str]) -> dict[str, Any] | None:
        """Return what config.json says of the layout, given the linears that stay as they were; None for nothing."""
        ...
