"""Peak resident memory of `bitpress run`: the same block shape with 8 and with 32 blocks."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import save
from random_models import TEXT, llama, write_random_model

BLOCKS = (8, 32)
HIDDEN = 768
NUM_SEQUENCES, SEQUENCE_LENGTH = 8, 128


def measure(num_blocks: int, method: Mapping[str, Any]) -> int:
    """Peak resident bytes of one `bitpress run` process over a random model."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        write_random_model(directory / "model", llama(num_blocks, HIDDEN))
        text = directory / "text.txt"
        text.write_text(TEXT * 2000)
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
