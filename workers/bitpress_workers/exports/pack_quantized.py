"""The `pack_quantized` target: the layout of that name of compressed-tensors, which vLLM reads as well.

Tensors of an [O, I] weight with G groups, in place of `weight`:

  weight_packed      int32 [O, ceil(I * bits / 32)], a little-endian bit stream per row
  weight_scale       float16 [O, G]
  weight_zero_point  int32 [ceil(O * bits / 32), G], a stream per group; only if not symmetric
  weight_shape       int64 [2]: O, I

There a code q of the range -2**(bits - 1) .. 2**(bits - 1) - 1 is stored as q + 2**(bits - 1), zeros
likewise: these are our codes and zeros as they are. A symmetric zero is 2**(bits - 1), its 0.

config.json says `dequantize`, so transformers unpacks while it loads. Without, compressed-tensors unpacks
before the first forward, which saves nothing, and (transformers 5.23, compressed-tensors 0.20)

  * weights with zeros do not load, not even from their own files: zeros are expected unpacked;
  * a Falcon with a tied head does not load: its initialization wants a `weight` in every linear;
  * scales are rounded to bfloat16 first where that is the model's type.

Source: compressed-tensors 0.20.0, compressors/pack_quantized (github.com/vllm-project/compressed-tensors).
"""

from typing import Any

import torch
from torch import Tensor

from bitpress.exports import Export
from bitpress.formats import CompressedLinear
from bitpress.methods import GPTQConfig, RTNConfig
from bitpress_workers.exports.affine import AffineCodes, pack_words

FORMAT = "pack-quantized"


class PackQuantized:
    name: Export = "pack_quantized"

    def __init__(self, method: RTNConfig | GPTQConfig) -> None:
        self._method = method

    @property
    def note(self) -> str:
        return (
            "For vLLM, and for transformers with compressed-tensors: `AutoModelForCausalLM.from_pretrained(path)`\n"
            'unpacks it to a dense model, in the 16 bits of the scales; `"dequantize"` in config.json says so.'
        )

    def refusal(self, shape: tuple[int, ...], routed: bool) -> str | None:
        if routed and not self._method.symmetric:
            return "transformers reads no zeros of experts while it merges them; symmetric grids have none"
        size = self._method.group_size
        if size is not None and shape[1] % size:
            return f"groups of {size} do not divide its {shape[1]} columns"
        return None

    def tensors(self, linear: CompressedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        affine, bits = AffineCodes.of(linear), self._method.bits
        tensors = {
            "weight_packed": pack_words(affine.codes_OI, bits),
            "weight_scale": affine.scale_OG,
            "weight_shape": torch.tensor(linear.shape),
        }
        if not self._method.symmetric:
            tensors["weight_zero_point"] = pack_words(affine.zero_OG.T.contiguous(), bits).T.contiguous()
        return tensors

    def quantization_config(self, other_linears: list[str]) -> dict[str, Any] | None:
        method = self._method
        weights = {
            "num_bits": method.bits,
            "type": "int",
            "symmetric": method.symmetric,
            "strategy": "channel" if method.group_size is None else "group",
            "group_size": method.group_size,
            "dynamic": False,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "format": FORMAT, "weights": weights}},
            "ignore": other_linears,
            "dequantize": True,
        }
