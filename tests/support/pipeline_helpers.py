"""Specs and runs that the pipeline's tests share."""

import hashlib
from pathlib import Path
from typing import Any

from bitpress.artifacts import Report
from bitpress.jobs import JobSpec, Progress, parse_spec
from bitpress_workers.local_run import run_local


def make_spec(model: Path | str, texts: Path, method: dict[str, Any], **overrides: Any) -> JobSpec:
    """A job of seconds."""
    return parse_spec(
        {
            "model": {"uri": str(model)},
            "method": method,
            "calibration": {
                "dataset": str(texts / "calibration.txt"),
                "num_sequences": 10,
                "sequence_length": 128,
            },
            "evaluation": {
                "datasets": [str(texts / "evaluation.txt")],
                "sequence_length": 128,
                "max_sequences": 6,
            },
        }
        | overrides
    )


def run(spec: JobSpec, directory: Path) -> Report:
    return run_local(spec, directory, ignore)


def ignore(_: Progress) -> None:
    return None


def block_hashes(directory: Path) -> dict[str, str]:
    """sha256 of every block file."""
    blocks = sorted((directory / "blocks").glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in blocks}
