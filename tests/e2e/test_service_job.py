"""Whole jobs through the real service: REST, Redis, dispatcher, driver, Ray, object store, pull, load."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from documents import DOCUMENTS, fences, name
from embedded_service import EmbeddedService
from pipeline_helpers import block_hashes, make_spec, run

from bitpress.errors import NotFound
from bitpress.jobs import BlockEvent, JobState, LogEvent, ProgressEvent, StateEvent
from bitpress.loading import load
from bitpress.sweeps import SweepSpec

pytestmark = pytest.mark.slow

SPQR = {"kind": "spqr", "bits": 3}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_job_on_ray_gives_the_bytes_of_a_local_run(
    service: EmbeddedService, opt_mini: Path, texts: Path, tmp_path: Path, shards: int
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, devices=shards)
    with service.client() as client:
        job = client.submit(spec)
        events = list(client.events(job.id))
        assert client.get(job.id).state is JobState.SUCCEEDED, client.get(job.id).error
        client.pull(job.id, tmp_path / "pulled")
        report = client.report(job.id)
    local = run(spec, tmp_path / "local")
    assert len(block_hashes(tmp_path / "pulled")) == 4
    assert block_hashes(tmp_path / "pulled") == block_hashes(tmp_path / "local")
    assert report.perplexity == local.perplexity
    assert [event.index for event in events if isinstance(event, BlockEvent)] == [0, 1, 2, 3]
    assert [e.state for e in events if isinstance(e, StateEvent)][-2:] == [JobState.RUNNING, JobState.SUCCEEDED]
    assert any(isinstance(event, ProgressEvent) and event.progress.linear for event in events)
    pulled = {str(path.relative_to(tmp_path / "pulled")) for path in (tmp_path / "pulled").rglob("*")}
    assert pulled == {str(path.relative_to(tmp_path / "local")) for path in (tmp_path / "local").rglob("*")}
    assert load(tmp_path / "pulled").config.model_type == "opt"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize(
    "guide", [document for document in DOCUMENTS if "```sh run\n" in document.read_text()], ids=name
)
def test_the_commands_of_the_guides_do_what_they_say(
    service: EmbeddedService, opt_mini: Path, texts: Path, tmp_path: Path, guide: Path
) -> None:
    key = (service.state / "api-key").read_text().strip()
    where = {"BITPRESS_API_URL": f"http://127.0.0.1:{service.port}", "BITPRESS_API_KEY": key, "NO_PROXY": "127.0.0.1"}
    program = "".join(text for kind, text in fences(guide) if kind == "sh run")
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", program],
        cwd=tmp_path, env=os.environ | where | {"MODEL": str(opt_mini), "TEXT": str(texts / "calibration.txt")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_job_outlives_its_driver_and_the_whole_service(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    service = EmbeddedService(tmp_path / "state")
    service.start()
    spec = make_spec(opt_mini, texts, SPQR, devices=1)
    with service.client() as client:
        job = client.submit(spec)
        blocks = 0
        for event in client.events(job.id):
            if isinstance(event, BlockEvent):
                blocks += 1
                if blocks == 1:
                    os.kill(service.driver(), signal.SIGKILL)  # mid-block: the next one is under way
                if blocks == 2:
                    break
    service.kill()
    service.start()
    with service.client() as client:
        events = list(client.events(job.id))
        ended = client.get(job.id)
        assert ended.state is JobState.SUCCEEDED, ended.error
        assert ended.attempt == 3
        assert [event.index for event in events if isinstance(event, BlockEvent)] == [0, 1, 2, 3]
        client.pull(job.id, tmp_path / "pulled")
    assert service.stop() == 0
    run(spec, tmp_path / "local")
    assert block_hashes(tmp_path / "pulled") == block_hashes(tmp_path / "local")


def test_a_sweep_shares_one_driver_and_each_member_has_the_bytes_of_its_own_job(
    service: EmbeddedService, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    methods = [
        {"kind": "gptq", "bits": 3, "group_size": 32},
        SPQR,
        {"kind": "rtn", "bits": 4},
        {"kind": "rtn", "bits": 2},
    ]
    data = make_spec(opt_mini, texts, SPQR, devices=2).model_dump(mode="json")
    sweep = SweepSpec.model_validate(data | {"method": methods})
    with service.client() as client:
        *kept, dropped = client.submit_sweep(sweep)
        for event in client.events(kept[1].id):
            if isinstance(event, BlockEvent):  # its second block is to come
                os.kill(service.driver(), signal.SIGKILL)
                break
        client.cancel(dropped.id)
        assert client.wait(dropped.id).state is JobState.CANCELLED
        for number, job in enumerate(kept):
            ended = client.wait(job.id)
            assert (ended.state, ended.attempt, ended.sweep) == (JobState.SUCCEEDED, 2, dropped.sweep), ended.error
            blocks = [event.index for event in client.history(job.id) if isinstance(event, BlockEvent)]
            assert blocks == [0, 1, 2, 3]
            client.pull(job.id, tmp_path / f"pulled-{number}")
    ids = {job.id for job in (*kept, dropped)}
    logs = {path.stem for path in (service.state / "logs").iterdir() if path.stem.rpartition("-")[0] in ids}
    assert logs == {f"{kept[0].id}-1", f"{kept[0].id}-2"}  # two drivers, each for all
    for number, spec in enumerate(sweep.specs()[:3]):
        run(spec, tmp_path / f"alone-{number}")
        assert block_hashes(tmp_path / f"pulled-{number}") == block_hashes(tmp_path / f"alone-{number}")


def test_a_running_job_is_cancelled_before_its_next_linear(
    service: EmbeddedService, opt_mini: Path, texts: Path
) -> None:
    with service.client() as client:
        job = client.submit(make_spec(opt_mini, texts, SPQR, devices=1))
        for event in client.events(job.id):
            if isinstance(event, ProgressEvent) and event.progress.linear:
                assert client.cancel(job.id).state is JobState.CANCELLING
                break
        later = list(client.events(job.id, event.id))
        assert client.get(job.id).state is JobState.CANCELLED
        asked = next(i for i, e in enumerate(later) if isinstance(e, StateEvent) and e.state is JobState.CANCELLING)
        # The write that learns of it is the last one.
        assert sum(isinstance(e, ProgressEvent) for e in later[asked:]) <= 1
        with pytest.raises(NotFound):
            client.report(job.id)


def test_a_job_that_cannot_be_done_fails_with_a_code(service: EmbeddedService, texts: Path, tmp_path: Path) -> None:
    with service.client() as client:
        job = client.submit(make_spec(tmp_path / "nowhere", texts, SPQR))
        ended = client.wait(job.id)
        assert ended.state is JobState.FAILED and ended.attempt == 1
        assert ended.error is not None and ended.error.code == "bad-checkpoint"
        assert "nowhere" in ended.error.message
        assert any(isinstance(event, LogEvent) for event in client.history(job.id))
