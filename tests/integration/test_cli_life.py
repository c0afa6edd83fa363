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
pytestmark = pytest.mark.usefixtures("environment")


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


def test_an_id_may_be_cut_short_until_it_fits_several(client: Client) -> None:
    first, second = (client.submit(parse_spec(SPEC)) for _ in range(2))
    unique = next(n for n in range(5, 31) if first.id[:n] != second.id[:n])
    shown = bitpress("get", first.id[:unique], "--json")
    assert json.loads(shown.stdout)["id"] == first.id
    assert json.loads(bitpress("get", first.id[4:unique].lower(), "--json").stdout)["id"] == first.id
    several = bitpress("cancel", first.id[: unique - 1])
    assert several.returncode == 5 and several.stdout == ""
    assert first.id in several.stderr and second.id in several.stderr and "write more of it" in several.stderr
    assert client.get(first.id).state is JobState.QUEUED
    none = bitpress("get", "job_ZZZZ")
    assert none.returncode == 3 and "begins with job_ZZZZ" in none.stderr
    assert bitpress("get", "job_*").returncode == 3
    assert bitpress("pause", second.id[:unique]).returncode == 0
    assert client.get(second.id).state is JobState.PAUSED


def test_ids_are_read_from_stdin(client: Client) -> None:
    jobs = [client.submit(parse_spec(SPEC)) for _ in range(3)]
    for job in jobs:
        client.cancel(job.id)
    ids = "\n".join(job.id for job in jobs)
    watched = bitpress("watch", "-", stdin=ids)
    assert watched.returncode == 8
    assert bitpress("rm", "-", stdin=ids).returncode == 2, "nobody can be asked"
    removed = bitpress("rm", "-", "--yes", "--json", stdin=ids)
    assert json.loads(removed.stdout) == {"removed": [job.id for job in jobs]}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_ids_of_jobs(client: Client, shell: str) -> None:
    job = client.submit(parse_spec(SPEC | {"name": "the night's job"}))

    def completed(begin: str, **environment: str) -> str:
        words = f"bitpress get {begin}"
        asked = {
            "_BITPRESS_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": "2",
            "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }  # fmt: skip
        return bitpress(**(asked | environment)).stdout

    assert job.id in completed(job.id[:20]) and job.id in completed("job_")
    assert ("the night's job" in completed("job_").replace("''", "'")) is (shell != "bash")
    assert job.id not in completed("job_ZZZ")
    assert completed("job_", BITPRESS_API_URL="http://127.0.0.1:9").strip() in ("", "_arguments '*: :(('))", "_files")


def test_a_script_for_the_shell_is_there(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        shown = bitpress("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
        assert shown.returncode == 0 and "_BITPRESS_COMPLETE=complete_" + shell in shown.stdout
