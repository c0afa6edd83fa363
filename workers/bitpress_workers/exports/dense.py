"""The `dense` target: dequantized weights, as a checkpoint that was never compressed."""

from typing import Any

import torch
from torch import Tensor

from bitpress.exports import Export
from bitpress.formats import CompressedLinear


class Dense:
    name: Export = "dense"
    note = (
        "The compressed weights, dequantized and rounded to the type they had before compression. In 16 bits this\n"
        "moves them once more, by up to 1 part in 2,048 (float16) or 256 (bfloat16); the native artifact does not\n"
        "round. The files are as large as the model was."
    )

    def refusal(self, shape: tuple[int, ...], routed: bool) -> str | None:
        return None

    def tensors(self, linear: CompressedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": linear.dequantize().to(dtype)}

    def quantization_config(self, other_linears: list[str]) -> dict[str, Any] | None:
        return None
