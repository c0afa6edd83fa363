"""Plans through the real service: REST, Redis, dispatcher, a planner of its own; also while a job runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_service import EmbeddedService
from header_only import llama_65b, write_headers
from pipeline_helpers import make_spec
from run_cli import bitpress

from bitpress.client import Client
from bitpress.errors import CheckpointError, OutOfMemory
from bitpress.plans import DevicesLike, Rates
from bitpress.sweeps import SweepSpec

pytestmark = pytest.mark.slow

SPQR = {"kind": "spqr", "bits": 3}
RATES = Rates(gemm_gflops=50e3, half_gemm_gflops=600e3, loop_gflops=1000)


@pytest.fixture
def client(service: EmbeddedService) -> Iterator[Client]:
    with service.client() as client:
        yield client


def test_a_plan_for_this_machine_is_measured_here_and_made_while_a_job_runs(
    client: Client, opt_mini: Path, texts: Path
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, devices=1)
    job = client.submit(spec)
    report = client.plan(spec)
    assert not client.get(job.id).state.terminal  # planned beside it
    client.cancel(job.id)
    client.wait(job.id)
    assert (report.spec, report.shards, report.devices.kind) == (spec, 1, "cpu")
    assert report.devices.rates_from == "probe" and report.devices.rates is not None
    assert report.seconds is not None and report.seconds > 0
    assert [shape.blocks for shape in report.blocks] == [(0, 1, 2, 3)]


def test_a_plan_for_other_devices_is_refused_until_the_change_that_it_names_is_made(
    client: Client, tmp_path: Path
) -> None:
    model = write_headers(llama_65b(4), tmp_path / "llama")
    spec = make_spec(model, tmp_path, SPQR, calibration={"dataset": "c4"}, evaluation={}, devices=1)
    roomy = DevicesLike(kind="cuda", count=4, memory_gib=141, rates=RATES)
    report = client.plan(spec, roomy)
    assert report.devices.rates_from == "statement"
    assert report.activations == "device"
    smaller = roomy.model_copy(update={"memory_gib": 0.8 * report.peak_device_bytes / 2**30})
    offloaded = client.plan(spec, smaller)
    assert offloaded.activations == "host"
    tight = roomy.model_copy(update={"memory_gib": 0.8 * offloaded.peak_device_bytes / 2**30})
    with pytest.raises(OutOfMemory, match='it fits with "devices": ') as caught:
        client.plan(spec, tight)
    devices = int(caught.value.message.rpartition(" ")[2])
    assert client.plan(spec.model_copy(update={"devices": devices}), tight).shards == devices


def test_a_checkpoint_that_is_not_there(client: Client, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        client.plan(make_spec(tmp_path / "nowhere", tmp_path, SPQR))


def test_the_command_prints_a_table_or_one_document_with_and_without_a_service(
    service: EmbeddedService, client: Client, opt_mini: Path, tmp_path: Path
) -> None:
    spec: dict[str, Any] = {"model": {"uri": str(opt_mini)}, "method": SPQR, "calibration": {"dataset": "c4"}}
    devices = tmp_path / "devices.json"
    devices.write_text(DevicesLike(kind="cuda", count=2, memory_gib=80, rates=RATES).model_dump_json())
    arguments = ("plan", "-", "--devices-like", str(devices))
    environment = {"BITPRESS_API_URL": client.url, "BITPRESS_API_KEY": (service.state / "api-key").read_text().strip()}
    asked = bitpress(*arguments, "--json", stdin=json.dumps(spec), **environment)
    here = bitpress(*arguments, "--json", "--local", stdin=json.dumps(spec), BITPRESS_STATE_DIR=str(tmp_path))
    assert asked.returncode == here.returncode == 0, asked.stderr + here.stderr
    assert json.loads(asked.stdout) == json.loads(here.stdout)
    table = bitpress(*arguments, "--local", stdin=json.dumps(spec), BITPRESS_STATE_DIR=str(tmp_path))
    for words in ("2 x cuda", "peak device memory", "hessian", "0-3", "bits per weight"):
        assert words in table.stdout
    assert "assumed: 1% of the weights are outliers" in table.stderr
    refused = bitpress(*arguments, "--local", "--set", "devices=3", stdin=json.dumps(spec))
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr.startswith("error [invalid-job]: the job asks for 3 devices; there are 2\n")


def test_the_members_of_a_sweep_are_planned_together(client: Client, opt_mini: Path, tmp_path: Path) -> None:
    spec = {
        "model": {"uri": str(opt_mini)},
        "method": [SPQR, {"kind": "rtn", "bits": 4}],
        "calibration": {"dataset": "c4"},
    }
    devices = DevicesLike(kind="cuda", count=2, memory_gib=80, rates=RATES)
    (tmp_path / "devices.json").write_text(devices.model_dump_json())
    sweep = SweepSpec.model_validate(spec)
    report = client.plan_sweep(sweep, devices)
    assert [member.spec for member in report.members] == list(sweep.specs())
    assert report.flops == sum(phase.flops for phase in report.phases.values())
    arguments = ("plan", "-", "--local", "--devices-like", str(tmp_path / "devices.json"))
    table = bitpress(*arguments, stdin=json.dumps(spec), BITPRESS_STATE_DIR=str(tmp_path))
    assert table.returncode == 0, table.stderr
    for words in ("members", "00-spqr", "01-rtn", "peak device memory", "time alone"):
        assert words in table.stdout
    assert "assumed: 1% of the weights are outliers" in table.stderr
