"""Peak resident memory of a job over a checkpoint larger than it: one shard, RTN, in blocks as computed with (float32).

Writes a LLaMA of random float16 weights of `--gigabytes` into `--scratch`, runs `bitpress run` over it in a process of
its own and deletes both. What the same job takes with blocks of no size to speak of is the process itself, and is
taken off; so are the activations. A block takes the same whatever stands before it, so `--minutes` may end the job
before the model does; how many blocks it had compressed then is among the results.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import save
from random_models import BLOCKS, TEXT, llama, shapes_of, write_random_model

NUM_SEQUENCES, SEQUENCE_LENGTH = 8, 64
SAMPLE_SECONDS = 0.5


def write_spec(directory: Path) -> Path:
    """A job over `directory`/model, with few tokens and without evaluation."""
    text = directory / "text.txt"
    text.write_text(TEXT * 2000)
    spec = {
        "model": {"uri": str(directory / "model")},
        "method": {"kind": "rtn", "bits": 4},
        "calibration": {
            "dataset": str(text),
            "num_sequences": NUM_SEQUENCES,
            "sequence_length": SEQUENCE_LENGTH,
        },
        "devices": 1,
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    return directory / "spec.json"


def watch(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Largest resident bytes of a process until it ends or the time is over; Linux counts them."""
    peak, deadline = 0, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))])
        time.sleep(SAMPLE_SECONDS)
    if process.poll() is None:
        process.kill()
    elif process.returncode:
        raise SystemExit(f"the job failed with exit code {process.returncode}")
    process.wait()
    return peak


def measure(num_blocks: int, hidden_size: int, scratch: Path | None, seconds: float) -> tuple[int, int]:
    """Peak of one job's process, and how many blocks it compressed."""
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        directory = Path(made)
        write_random_model(directory / "model", llama(num_blocks, hidden_size))
        command = [sys.executable, "-m", "bitpress_workers", "run", str(write_spec(directory))]
        process = subprocess.Popen([*command, "--out", str(directory / "out")], stdout=subprocess.DEVNULL)
        peak = watch(process, seconds)
        return peak, len(list((directory / "out" / "blocks").glob("*.json")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the job; writing the checkpoint comes on top")
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is written; default: the system's")
    options = parser.parse_args()
    hidden_size = options.hidden_size
    shapes = shapes_of(llama(1, hidden_size))
    block_bytes = 4 * sum(shape.numel() for name, shape in shapes.items() if name.startswith(BLOCKS))
    num_blocks = max(2, round(options.gigabytes * 1e9 / (block_bytes / 2)))
    base, _ = measure(2, 64, options.scratch, 600)
    peak, compressed = measure(num_blocks, hidden_size, options.scratch, 60 * options.minutes)
    activations = 4 * NUM_SEQUENCES * SEQUENCE_LENGTH * hidden_size
    save(
        "streaming",
        {
            "checkpoint_bytes": num_blocks * block_bytes // 2,
            "hidden_size": hidden_size,
            "num_blocks": num_blocks,
            "blocks_compressed": compressed,
            "block_bytes": block_bytes,
            "process_bytes": base,
            "activation_bytes": activations,
            "peak_bytes": peak,
            "peak_in_blocks": round((peak - base - activations) / block_bytes, 2),
        },
    )


if __name__ == "__main__":
    main()
