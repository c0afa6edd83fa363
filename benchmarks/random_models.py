"""Checkpoints of random weights, of any size and shape, with a tokenizer of 256 bytes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedConfig, PreTrainedTokenizerFast

BLOCKS = ("model.layers.", "model.decoder.layers.")
VOCABULARY = 256
POOL_SIZE = 4_194_301  # random numbers that weights are cut from; a prime, so that no two rows are alike
TEXT = "The quick brown fox jumps over the lazy dog. "


def llama(num_blocks: int, hidden_size: int, ffn_size: int | None = None, head_size: int = 64) -> LlamaConfig:
    """ffn_size: 8/3 of the hidden size, as LLaMA has it, unless it is given."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=ffn_size or hidden_size * 8 // 3,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden_size // head_size,
        max_position_embeddings=2048,
        dtype="float16",
    )


def opt(num_blocks: int, hidden_size: int, ffn_size: int, head_size: int = 64) -> OPTConfig:
    return OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        word_embed_proj_dim=hidden_size,
        ffn_dim=ffn_size,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden_size // head_size,
        max_position_embeddings=2048,
        dtype="float16",
    )


def write_random_model(directory: Path, config: PreTrainedConfig) -> None:
    """Random float16 weights, one file a block, with a byte tokenizer."""
    config.save_pretrained(directory)
    write_byte_tokenizer(directory)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes_of(config).items():
        prefix = next((prefix for prefix in BLOCKS if name.startswith(prefix)), None)
        number = int(name.removeprefix(prefix).split(".")[0]) + 1 if prefix else 0
        files.setdefault(f"model-{number:05d}.safetensors", {})[name] = shape
    pool = torch.randn(POOL_SIZE, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for number, (file, shapes) in enumerate(files.items()):
        pool = pool.roll(number + 1)
        save_file({name: _weights(pool, name, shape) for name, shape in shapes.items()}, directory / file)
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def shapes_of(config: PreTrainedConfig) -> dict[str, torch.Size]:
    """Of all tensors of the model; its head, where that is the embedding, is not stored twice."""
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tensor.shape for name, tensor in tensors.items() if name not in tied}


def _weights(pool: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    """Random matrices; norms are ones, biases zeros."""
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=pool.dtype)
    return pool.repeat(-(-shape.numel() // len(pool)))[: shape.numel()].view(shape)


def write_byte_tokenizer(directory: Path) -> None:
    """A tokenizer of 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
