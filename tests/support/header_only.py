"""Checkpoints of any size that hold nothing: a config, headers, and a hole for the weights, which takes no disk."""

import json
from math import prod
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig


def opt(hidden: int, num_blocks: int, num_heads: int) -> PreTrainedConfig:
    """An OPT of the shape that arXiv 2205.01068 gives all of them."""
    return AutoConfig.for_model(
        "opt", hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden, num_hidden_layers=num_blocks,
        num_attention_heads=num_heads, vocab_size=50272, max_position_embeddings=2048,
    )  # fmt: skip


def opt_66b(num_blocks: int = 64) -> PreTrainedConfig:
    """arXiv 2205.01068, table 1."""
    return opt(9216, num_blocks, 72)


def llama_65b(num_blocks: int = 80) -> PreTrainedConfig:
    """arXiv 2302.13971, table 2."""
    return AutoConfig.for_model(
        "llama", hidden_size=8192, intermediate_size=22016, num_hidden_layers=num_blocks,
        num_attention_heads=64, vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip


def write_headers(config: PreTrainedConfig, directory: Path) -> Path:
    """Write config.json and the header of one float16 safetensors file; what follows it is a hole."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    tied, start = set(model.all_tied_weights_keys), 0
    header: dict[str, object] = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            stop = start + 2 * prod(tensor.shape)
            header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, stop]}
            start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return directory
