"""The layout of AutoGPTQ, read the slow way: each stream of words as one large number."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STORED_LESS = {"gptq": 1, "gptq_v2": 0}  # by how much zeros are stored too small


def read_stream(words: Tensor, bits: int, count: int) -> list[int]:
    """Codes of a little-endian stream of 32-bit words."""
    number = sum((word & 0xFFFFFFFF) << (32 * k) for k, word in enumerate(words.tolist()))
    return [number >> (bits * k) & (2**bits - 1) for k in range(count)]


def read_weight(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """The weight, float32 [O, I], of qweight, qzeros, scales and g_idx under a quantization_config."""
    bits, group_I = config["bits"], tensors["g_idx"].long()
    code_OI = [read_stream(words, bits, len(group_I)) for words in tensors["qweight"].T]
    num_rows = tensors["scales"].shape[1]
    zero_GO = [read_stream(words, bits, num_rows) for words in tensors["qzeros"]]
    zero_IO = (torch.tensor(zero_GO) + STORED_LESS[config["checkpoint_format"]])[group_I]
    return (tensors["scales"].float()[group_I] * (torch.tensor(code_OI).T - zero_IO)).T
