"""Jobs on random models, in directories, on fleets of one's choice: what the scaling benchmarks have in common."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from random_models import TEXT

from bitpress.artifacts import Report
from bitpress.jobs import JobSpec, parse_spec
from bitpress_workers.local_run import DirectoryRecorder
from bitpress_workers.pipeline import run
from bitpress_workers.pipeline.fleet import FleetMaker
from bitpress_workers.pipeline.plan import Devices

# As in every process of Bitpress: without it bits depend on where operands lie. MKL looks at it when first used.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

METHODS: dict[str, dict[str, Any]] = {
    "spqr": {"kind": "spqr", "bits": 3},
    "septq": {"kind": "septq", "bits": 3},
    "gptq": {"kind": "gptq", "bits": 3},
}


def make_spec(
    model: Path, method: dict[str, Any], *, sequences: int, length: int, shards: int, windows: int = 0
) -> JobSpec:
    """A job over one text; `windows` of it are evaluated."""
    text = model.parent / "text.txt"
    text.write_text(TEXT * 2000)
    evaluation = {
        "datasets": [str(text)] if windows else [],
        "sequence_length": length,
        "max_sequences": windows or None,
    }
    return parse_spec(
        {
            "model": {"uri": str(model)},
            "method": method,
            "calibration": {"dataset": str(text), "num_sequences": sequences, "sequence_length": length},
            "evaluation": evaluation,
            "devices": shards,
        }
    )


def run_job(spec: JobSpec, directory: Path, make_fleet: FleetMaker, devices: Devices) -> Report:
    """Run a job into a directory, or go on with one that was left there."""
    directory.mkdir(exist_ok=True)
    site = run.Site(
        devices=devices,
        make_fleet=make_fleet,
        store_url=directory.resolve().as_uri(),
        scratch=directory.resolve() / ".scratch",
    )
    return run.run_job(spec, str, DirectoryRecorder(directory, lambda _: None), site)


def run_fresh(spec: JobSpec, directory: Path, make_fleet: FleetMaker, devices: Devices) -> Report:
    """Run a job into a directory that is emptied first."""
    shutil.rmtree(directory, ignore_errors=True)
    return run_job(spec, directory, make_fleet, devices)


def block_hashes(directory: Path) -> list[str]:
    """sha256 of every block file, in order."""
    files = sorted((directory / "blocks").glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def load() -> float:
    """How many processes wanted a core during the last minute, ours among them."""
    return round(os.getloadavg()[0], 2)
