"""What a plan says of memory, against the peak of a real process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import make_spec
from random_models import llama, write_random_model

from bitpress_workers.pipeline.outlook import outlook
from bitpress_workers.pipeline.plan import Devices

METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"kind": "rtn", "bits": 4},
    "gptq": {"kind": "gptq", "bits": 4, "group_size": 128},
    "spqr": {"kind": "spqr", "bits": 3},
    "septq": {"kind": "septq", "bits": 2},
    "ptq161": {"kind": "ptq161", "epochs": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of hidden size 1536: one takes 113 MB, at its peak a job four to seven times that."""
    directory = tmp_path_factory.mktemp("model")
    write_random_model(directory, llama(2, 1536))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_planned_peak_is_near_the_measured_one(model: Path, texts: Path, tmp_path: Path, name: str) -> None:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 8, "sequence_length": 32}
    evaluation = {"datasets": [str(texts / "evaluation.txt")], "sequence_length": 32, "max_sequences": 2}
    spec = make_spec(model, texts, METHODS[name], calibration=calibration, evaluation=evaluation, devices=1)
    planned = outlook(spec, Devices("cpu", 1, 2**40), None, "nowhere").peak_host_bytes
    command = [sys.executable, "-m", "bitpress_workers", "run", "-", "--out", str(tmp_path / "out")]
    subprocess.run(command, input=spec.model_dump_json(), text=True, check=True, stdout=subprocess.DEVNULL)
    measured = json.loads((tmp_path / "out" / "report.json").read_text())["peak_bytes"]
    assert 0.85 < planned / measured < 1.15, (planned, measured)
