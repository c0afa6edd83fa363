"""A whole job on a GPU: the same bytes every time, and an artifact that loads there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import block_hashes, ignore, make_spec, run

from bitpress.loading import load
from bitpress_workers.local_run import run_local
from bitpress_workers.pipeline.fleet import local_devices
from bitpress_workers.pipeline.outlook import outlook

pytestmark = pytest.mark.gpu

METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"kind": "rtn", "bits": 4},
    "gptq": {"kind": "gptq", "bits": 4, "group_size": 128},
    "spqr": {"kind": "spqr", "bits": 3},
    "septq": {"kind": "septq", "bits": 3},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_job_twice(cuda: torch.device, mini_model: Path, texts: Path, tmp_path: Path, name: str) -> None:
    spec = make_spec(mini_model, texts, METHODS[name])
    reports = [run(spec, tmp_path / attempt) for attempt in ("first", "second")]
    assert block_hashes(tmp_path / "first") == block_hashes(tmp_path / "second")
    assert reports[0].perplexity == reports[1].perplexity


def test_activations_on_the_host_change_no_bit(cuda: torch.device, opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 64, "sequence_length": 128}
    spec = make_spec(opt_mini, texts, METHODS["gptq"], calibration=calibration, devices=1)
    planned = outlook(spec, local_devices(), None, "nowhere")
    limit = (planned.peak_device_bytes - 1) / 2**30
    assert outlook(spec, local_devices().within(limit), None, "nowhere").activations == "host"
    run(spec, tmp_path / "kept")
    run_local(spec, tmp_path / "offloaded", ignore, limit)
    assert block_hashes(tmp_path / "kept") == block_hashes(tmp_path / "offloaded")


def test_an_artifact_loads_on_the_gpu(cuda: torch.device, opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    run(make_spec(opt_mini, texts, METHODS["spqr"]), tmp_path / "artifact")
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    on_cpu, on_gpu = load(tmp_path / "artifact"), load(tmp_path / "artifact", device=cuda)
    assert all(parameter.is_cuda for parameter in [*on_gpu.parameters(), *on_gpu.buffers()])
    with torch.no_grad():
        expected, found = on_cpu(tokens).logits, on_gpu(tokens.to(cuda)).logits
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.05, atol=0.05)
