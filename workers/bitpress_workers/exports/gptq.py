"""The `gptq` target: the layout of AutoGPTQ, version 1 for symmetric grids and version 2 for others.

Tensors of an [O, I] weight with G groups, in place of `weight`:

  qweight  int32 [I * bits / 32, O], a little-endian bit stream per row of the weight, from top to bottom
  qzeros   int32 [G, O * bits / 32], a stream per group; version 1 holds zero - 1
  scales   float16 [G, O]
  g_idx    int32 [I], the group of each column

Version 1 has no place for a zero of 0, which a grid that is not symmetric may well have; readers
disagree on what comes of its -1. Version 2 holds zeros as they are, but not every reader knows it.

Source: AutoGPTQ (github.com/AutoGPTQ/AutoGPTQ), nn_modules/qlinear, and GPTQModel
(github.com/ModelCloud/GPTQModel), which named the versions `gptq` and `gptq_v2`.
"""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from bitpress.exports import Export, has_scattered_groups
from bitpress.formats import CompressedLinear
from bitpress.methods import GPTQConfig, RTNConfig
from bitpress_workers.exports.affine import AffineCodes, pack_words

MULTIPLE = 32  # readers take whole words of every width, along rows and along columns


class GPTQLayout:
    name: Export = "gptq"

    def __init__(self, method: RTNConfig | GPTQConfig) -> None:
        self._method = method

    @property
    def note(self) -> str:
        readers = "transformers with optimum and gptqmodel, or GPTQModel itself"
        if self._method.symmetric:
            return f"Layout `gptq` (version 1), for {readers}; vLLM takes 4 and 8 bits."
        return f"Layout `gptq_v2`, since zeros of 0 have no place in version 1; for {readers}. vLLM does not take it."

    def refusal(self, shape: tuple[int, ...], routed: bool) -> str | None:
        if any(length % MULTIPLE for length in shape):
            return f"rows and columns must be multiples of {MULTIPLE}"
        size = self._method.group_size
        if size is not None and shape[1] % size:
            return f"groups of {size} do not divide its {shape[1]} columns"
        return None

    def tensors(self, linear: CompressedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        affine, bits = AffineCodes.of(linear), self._method.bits
        zero_OG = affine.zero_OG - 1 if self._method.symmetric else affine.zero_OG
        return {
            "qweight": pack_words(affine.codes_OI, bits).T.contiguous(),
            "qzeros": pack_words(zero_OG.T.contiguous(), bits),
            "scales": affine.scale_OG.T.contiguous(),
            "g_idx": affine.group_I,
        }

    def quantization_config(self, other_linears: list[str]) -> dict[str, Any] | None:
        method = self._method
        return {
            "quant_method": "gptq",
            "bits": method.bits,
            "group_size": -1 if method.group_size is None else method.group_size,
            "desc_act": has_scattered_groups(method),
            "sym": method.symmetric,
            "lm_head": False,
            "checkpoint_format": "gptq" if method.symmetric else "gptq_v2",
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"bitpress:{version('bitpress')}"]},
        }
