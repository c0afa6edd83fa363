"""Peak resident memory of `bitpress run`: the same block shape with 8 and with 32 blocks, then one large checkpoint.

`--gigabytes 20` makes the large checkpoint that large; every weight of it is random, on the disk of `--scratch`.
"""

import argparse
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
RTN = {"kind": "rtn", "bits": 4}
NUM_SEQUENCES, SEQUENCE_LENGTH = 8, 128


def write_random_model(directory: Path, num_blocks: int, hidden_size: int = 768) -> None:
    """A LLaMA of random float16 weights, one file a block, with a byte tokenizer."""
    config = _config(num_blocks, hidden_size)
    config.save_pretrained(directory)
    write_byte_tokenizer(directory)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in _shapes(config).items():
        number = int(name.split(".")[2]) + 1 if name.startswith(BLOCK) else 0
        files.setdefault(f"model-{number:05d}.safetensors", {})[name] = shape
    for number, (file, shapes) in enumerate(files.items()):
        _write_random_tensors(directory / file, shapes, number)
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _config(num_blocks: int, hidden_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=256,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=512,
        dtype="float16",
    )


def _shapes(config: LlamaConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}


def _write_random_tensors(file: Path, shapes: Mapping[str, torch.Size], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: (torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)).half()
        for name, shape in shapes.items()
    }
    save_file(weights, file)


def write_byte_tokenizer(directory: Path) -> None:
    """A tokenizer of 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def measure(
    num_blocks: int, method: Mapping[str, Any], hidden_size: int = 768, scratch: Path | None = None, **spec: Any
) -> int:
    """Peak resident bytes of one `bitpress run` process over a random model; `spec`: what else the spec is to say."""
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        directory = Path(made)
        write_random_model(directory / "model", num_blocks, hidden_size)
        text = directory / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 2000)
        spec |= {
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


def measure_large(gigabytes: float, hidden_size: int, scratch: Path | None) -> dict[str, float]:
    """Peak of one shard over a checkpoint of so many GB, in blocks as they lie in memory, float32 on a CPU.

    What the same job takes with blocks of no size to speak of is the process itself, and is taken off;
    so are the activations: dense and compressed, before and after a block.
    """
    shapes = _shapes(_config(1, hidden_size))
    block_bytes = 4 * sum(shape.numel() for name, shape in shapes.items() if name.startswith(BLOCK))
    num_blocks = max(2, round(gigabytes * 1e9 / (block_bytes / 2)))
    process = measure(2, RTN, 64, scratch, devices=1)
    peak = measure(num_blocks, RTN, hidden_size, scratch, devices=1)
    activations = 2 * 2 * 4 * NUM_SEQUENCES * SEQUENCE_LENGTH * hidden_size
    return {
        "checkpoint_bytes": num_blocks * block_bytes // 2,
        "num_blocks": num_blocks,
        "block_bytes": block_bytes,
        "process_bytes": process,
        "activation_bytes": activations,
        "peak_bytes": peak,
        "peak_in_blocks": round((peak - process - activations) / block_bytes, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--scratch", type=Path, help="where the checkpoints are written; default: the system's")
    options = parser.parse_args()
    peaks = {num_blocks: measure(num_blocks, {"kind": "spqr", "bits": 3}) for num_blocks in BLOCKS}
    save(
        "memory",
        {
            "peak_bytes_by_blocks": peaks,
            "ratio": round(peaks[BLOCKS[1]] / peaks[BLOCKS[0]], 4),
            "large": measure_large(options.gigabytes, options.hidden_size, options.scratch),
        },
    )


if __name__ == "__main__":
    main()
