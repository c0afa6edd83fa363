"""Peak resident memory of `bitpress run` for the same block shape with 8 and with 32 blocks."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BLOCKS = (8, 32)


def write_random_model(directory: Path, num_blocks: int, hidden_size: int = 768) -> None:
    """A LLaMA of random float16 weights with a byte tokenizer; a block is 14 MB at hidden size 768."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).half().save_pretrained(directory, max_shard_size="100MB")
    write_byte_tokenizer(directory)


def write_byte_tokenizer(directory: Path) -> None:
    """A tokenizer of 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def measure(num_blocks: int, method: dict[str, object]) -> int:
    """Peak resident bytes of one `bitpress run` process over a random model."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_random_model(directory / "model", num_blocks)
        text = directory / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 2000)
        spec = {
            "model": {"uri": str(directory / "model")},
            "method": method,
            "calibration": {"dataset": str(text), "num_sequences": 8, "sequence_length": 128},
            "evaluation": {"datasets": [str(text)], "sequence_length": 128, "max_sequences": 8},
        }
        (directory / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "bitpress_workers", "run", str(directory / "spec.json")]
        subprocess.run([*command, "--out", str(directory / "out")], check=True, stdout=subprocess.DEVNULL)
        peak: int = json.loads((directory / "out" / "report.json").read_text())["peak_bytes"]
        return peak


def main() -> None:
    peaks = {num_blocks: measure(num_blocks, {"kind": "spqr", "bits": 3}) for num_blocks in BLOCKS}
    ratio = peaks[BLOCKS[1]] / peaks[BLOCKS[0]]
    save("memory", {"peak_bytes_by_blocks": peaks, "ratio": round(ratio, 4)})


if __name__ == "__main__":
    main()
