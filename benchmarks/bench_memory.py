"""Peak resident memory of `bitpress run`: the same block shape with 8 and with 32 blocks."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from machine import save
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BLOCK = "model.layers."
BLOCKS = (8, 32)
NUM_SEQUENCES, SEQUENCE_LENGTH = 8, 128
POOL_SIZE = 4_194_301  # random numbers that weights are cut from; a prime, so that no two rows are alike


def write_random_model(directory: Path, num_blocks: int, hidden_size: int = 768) -> None:
    """A LLaMA of random float16 weights, one file a block, with a byte tokenizer."""
    config = random_config(num_blocks, hidden_size)
    config.save_pretrained(directory)
    write_byte_tokenizer(directory)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes_of(config).items():
        number = int(name.split(".")[2]) + 1 if name.startswith(BLOCK) else 0
        files.setdefault(f"model-{number:05d}.safetensors", {})[name] = shape
    pool = (torch.randn(POOL_SIZE, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    for number, (file, shapes) in enumerate(files.items()):
        pool = pool.roll(number + 1)
        save_file({name: _cut(pool, shape) for name, shape in shapes.items()}, directory / file)
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def random_config(num_blocks: int, hidden_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=256,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=512,
        dtype="float16",
    )


def shapes_of(config: LlamaConfig) -> dict[str, torch.Size]:
    """The shapes of a model's tensors."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}


def _cut(pool: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Random weights; norms are ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=pool.dtype)
    return pool.repeat(-(-shape.numel() // len(pool)))[: shape.numel()].view(shape)


def write_byte_tokenizer(directory: Path) -> None:
    """A tokenizer of 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def measure(num_blocks: int, method: Mapping[str, Any]) -> int:
    """Peak resident bytes of one `bitpress run` process over a random model."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        write_random_model(directory / "model", num_blocks)
        text = directory / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 2000)
        spec = {
            "model": {"uri": str(directory / "model")},
            "method": method,
            "calibration": {
                "dataset": str(text),
                "num_sequences": NUM_SEQUENCES,
                "sequence_length": SEQUENCE_LENGTH,
            },
            "evaluation": {
                "datasets": [str(text)],
                "sequence_length": SEQUENCE_LENGTH,
                "max_sequences": NUM_SEQUENCES,
            },
        }
        (directory / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "bitpress_workers", "run", str(directory / "spec.json")]
        subprocess.run([*command, "--out", str(directory / "out")], check=True, stdout=subprocess.DEVNULL)
        peak: int = json.loads((directory / "out" / "report.json").read_text())["peak_bytes"]
        return peak


def main() -> None:
    peaks = {num_blocks: measure(num_blocks, {"kind": "spqr", "bits": 3}) for num_blocks in BLOCKS}
    save("memory", {"peak_bytes_by_blocks": peaks, "ratio": round(peaks[BLOCKS[1]] / peaks[BLOCKS[0]], 4)})


if __name__ == "__main__":
    main()
