"""Commands that steer a job, against the real API; the test plays the worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from run_cli import bitpress

from bitpress.client import Client
from bitpress.jobs import JobState, parse_spec

SPEC: dict[str, Any] = {
    "model": {"uri": "/models/small"},
    "method": {"kind": "rtn", "bits": 4},
    "calibration": {"dataset": "wikitext2"},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    service = ApiProcess(tmp_path_factory.mktemp("service"))
    service.start()
    yield service
    service.stop()


@pytest.fixture(autouse=True)
def environment(service: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(service: ApiProcess) -> Iterator[Client]:
    with Client(service.url, service.key) as client:
        yield client
        for job in client.list():  # leave nothing
            client.cancel(job.id)
            client.delete(job.id)


def shown(*arguments: str) -> dict[str, Any]:
    done = bitpress(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_a_job_is_named_edited_paused_resumed_retried_and_removed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    job_id = bitpress("submit", str(path), "--name", "First", "--priority", "2").stdout.strip()
    assert (shown("get", job_id)["spec"]["name"], shown("get", job_id)["priority"]) == ("First", 2)
    edited = shown("edit", job_id, "--name", "", "--label", "a=1", "--label", "b=2", "--priority", "7")
    assert (edited["spec"]["name"], edited["spec"]["labels"], edited["priority"]) == (None, {"a": "1", "b": "2"}, 7)
    assert shown("edit", job_id, "--label", "a=")["spec"]["labels"] == {"b": "2"}
    assert shown("pause", job_id)["state"] == "paused"
    assert bitpress("retry", job_id).returncode == 5
    assert shown("resume", job_id)["state"] == "queued"
    assert bitpress("rm", job_id, "--yes").returncode == 5
    assert shown("cancel", job_id)["state"] == "cancelled"
    assert bitpress("pause", job_id).returncode == 5
    assert shown("retry", job_id, "--fresh")["state"] == "queued"
    client.cancel(job_id)
    assert bitpress("rm", job_id).returncode == 2  # nobody to ask
    assert shown("rm", job_id, "--yes") == {"removed": [job_id]}
    assert bitpress("get", job_id).returncode == 3


def test_lists_are_filtered(client: Client) -> None:
    first = client.submit(parse_spec(SPEC | {"name": "Nightly run", "labels": {"team": "nlp"}}))
    second = client.submit(parse_spec(SPEC))

    def ids(*filters: str) -> list[str]:
        return [job["id"] for job in json.loads(bitpress("list", "--json", *filters).stdout)]

    assert ids("--label", "team=nlp") == ids("--name", "nightly") == [first.id]
    assert ids("--method", "rtn", "--model", "/models/small", "--since", "2020-01-01") == [second.id, first.id]
    assert ids("--method", "spqr") == ids("--label", "team=nlp", "--label", "x=y") == []
    assert bitpress("list", "--label", "team").returncode == 5
    assert "Nightly run" in bitpress("list", COLUMNS="200").stdout


def test_a_retried_jobs_events_do_not_stop_at_its_first_end(service: ApiProcess, client: Client) -> None:
    job, worker = client.submit(parse_spec(SPEC)), service.worker()
    worker.fail(worker.claim(job), "bad-calibration", "too short")
    assert client.retry(job.id).state is JobState.QUEUED
    claim = worker.claim(job)
    worker.record(claim, log="second try")
    worker.fail(claim, "bad-calibration", "still too short")
    states = [event.state.value for event in client.events(job.id) if event.type == "state"]
    assert states == ["queued", "running", "failed", "queued", "running", "failed"]
