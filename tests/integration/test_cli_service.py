"""The command line against the real API, a real Redis and real files; the test plays the worker."""

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess, PlayedWorker
from run_cli import bitpress, start_bitpress
from sample_report import PROVENANCE, sample_perplexity
from service_helpers import block_record

from bitpress.artifacts import BlockReport, DivergenceReport, LinearReport, LoadCheck, Report
from bitpress.client import Client
from bitpress.jobs import Job, Progress, parse_spec

SPEC: dict[str, Any] = {
    "model": {"uri": "/models/small"},
    "method": {"kind": "spqr", "bits": 3},
    "calibration": {"dataset": "wikitext2"},
}
BLOCK = bytes(range(256)) * 400
pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def client(service: ApiProcess) -> Iterator[Client]:
    with Client(service.url, service.key) as client:
        yield client
        for job in client.list():  # leave the queue empty
            client.cancel(job.id)


@pytest.fixture
def job(client: Client) -> Job:
    return client.submit(parse_spec(SPEC))


@pytest.fixture
def worker(service: ApiProcess) -> PlayedWorker:
    return service.worker()


def report_of(job: Job, perplexity: float = 11.5) -> Report:
    def linear(name: str, shape: tuple[int, int], error: float, outliers: float) -> LinearReport:
        return LinearReport(
            name=name, shape=shape, bits_per_weight=3.6, relative_error=error, outlier_fraction=outliers,
            damping_used=1.0, num_tokens=4096, seconds=1.5,
        )  # fmt: skip

    linears = (linear("fc1", (64, 16), 0.01, 0.02), linear("fc2", (16, 192), 0.03, 0.01))
    return Report(
        spec=job.spec,
        bits_per_weight=3.625,
        num_weights=4096,
        bytes_before=8192,
        bytes_after=1856,
        perplexity={"/texts/held-out.txt": sample_perplexity(perplexity, dense=10.25)},
        divergence={
            "/texts/held-out.txt": DivergenceReport(kl=0.02, kl_interval=None, agreement=0.9, agreement_interval=None)
        },
        error_growth=(0.004,),
        tasks={},
        gate_misses=None,
        failures=(),
        load_check=LoadCheck(outcome="not-done", detail="never"),
        blocks=(BlockReport(index=0, sha256="0" * 64, bytes=1856, seconds=3, linears=linears),),
        phases={"calibrating": 75.0, "evaluating": 4.0},
        processes=(),
        peak_bytes=123_000_000,
        peak_device_bytes=0,
        ledger=(),
        provenance=PROVENANCE,
    )


def content_of(job: Job, perplexity: float = 11.5) -> dict[str, bytes]:
    report = report_of(job, perplexity).model_dump_json().encode()
    return {"blocks/00000.safetensors": BLOCK, "report.json": report, "report.md": b"# Report\n\nAll is well.\n"}


def test_submit_get_list_cancel(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    submitted = bitpress("submit", str(path), "--set", "labels.note=first")
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    shown = json.loads(bitpress("get", job_id, "--json").stdout)
    assert (shown["id"], shown["state"], shown["spec"]["labels"]) == (job_id, "queued", {"note": "first"})
    assert job_id in bitpress("list").stdout
    assert [entry["id"] for entry in json.loads(bitpress("list", "--limit", "1", "--json").stdout)] == [job_id]
    assert "cancelled" in bitpress("cancel", job_id).stdout
    assert job_id not in bitpress("list", "--state", "queued").stdout
    assert json.loads(bitpress("cancel", job_id, "--json").stdout)["state"] == "cancelled"


def test_an_idempotency_key_makes_one_job(client: Client) -> None:
    first = bitpress("submit", "-", "--idempotency-key", "one", stdin=json.dumps(SPEC))
    again = bitpress("submit", "-", "--idempotency-key", "one", stdin=json.dumps(SPEC))
    other = bitpress("submit", "-", "--idempotency-key", "one", "--set", "method.bits=2", stdin=json.dumps(SPEC))
    assert first.returncode == 0
    assert first.stdout == again.stdout
    assert (other.returncode, other.stdout) == (5, "")
    assert other.stderr.startswith("error [conflict]: ")


@pytest.mark.parametrize("command", ["get", "watch", "cancel", "report", "logs"])
def test_an_unknown_job_is_code_3(command: str) -> None:
    done = bitpress(command, "job_00000000000000000000000000")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error [not-found]: ")


def test_a_job_that_has_not_ended_has_no_report_and_no_artifact(job: Job, tmp_path: Path) -> None:
    assert bitpress("report", job.id).returncode == 3
    assert bitpress("pull", job.id, "--out", str(tmp_path / "out")).returncode == 3
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_is_code_4() -> None:
    done = bitpress("list", "--json", BITPRESS_API_KEY="not-a-key")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error [unauthorized]: ")


def test_the_embedded_service_is_found_by_its_state_directory(
    service: ApiProcess, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITPRESS_API_URL")
    monkeypatch.delenv("BITPRESS_API_KEY")
    (service.state / "url").write_text(service.url)
    assert bitpress("get", job.id, BITPRESS_STATE_DIR=str(service.state)).returncode == 0
    (service.state / "url").unlink()


def test_watch_shows_progress_until_the_end(worker: PlayedWorker, job: Job) -> None:
    watch, lines = start_bitpress("watch", job.id), start_bitpress("watch", job.id, "--json")
    claim = worker.claim(job)
    progress = Progress(phase="calibrating", blocks_done=1, blocks_total=4, linear="fc1", fraction=0.25, eta_seconds=90)
    worker.record(claim, progress=progress, block=block_record(0))
    worker.succeed(claim, content_of(job))
    out, err = watch.communicate()
    assert (watch.returncode, out) == (0, "")
    assert f"{job.id}: 25% calibrating, 1/4 blocks, fc1, 1:30 left" in err
    assert err.splitlines()[-1].endswith("succeeded")
    out, err = lines.communicate()
    events = [json.loads(line) for line in out.splitlines()]
    assert (lines.returncode, err) == (0, "")
    assert [event["type"] for event in events if event["type"] != "state"] == ["progress", "block"]
    assert [event["state"] for event in events if event["type"] == "state"] == ["queued", "running", "succeeded"]
    assert {event["job"] for event in events} == {job.id}


def test_watch_several_ends_with_the_worst(client: Client, worker: PlayedWorker, job: Job) -> None:
    cancelled = client.submit(parse_spec(SPEC))
    watch = start_bitpress("watch", job.id, cancelled.id)
    claim = worker.claim(job)
    client.cancel(cancelled.id)
    worker.fail(claim, "numerical-failure", "block 3, fc1: not finite")
    out, err = watch.communicate()
    assert (watch.returncode, out) == (1, "")
    assert f"{job.id}: error [numerical-failure]: block 3, fc1: not finite" in err
    assert f"{cancelled.id}: 0% cancelled" in err
    assert bitpress("watch", cancelled.id).returncode == 8


def test_a_job_named_twice_is_watched_once(client: Client, worker: PlayedWorker, job: Job) -> None:
    other = client.submit(parse_spec(SPEC))
    worker.fail(worker.claim(job), "numerical-failure", "block 3, fc1: not finite")
    client.cancel(other.id)
    done = bitpress("watch", job.id, job.id, other.id, "--json")
    assert done.returncode == 1
    assert done.stderr.count(f"{job.id}: error") == 1 and "Traceback" not in done.stderr
    assert done.stdout.count('"state": "failed"') == 1


def test_ctrl_c_detaches_and_the_job_goes_on(client: Client, job: Job) -> None:
    watch = start_bitpress("watch", job.id)
    assert watch.stderr is not None
    assert watch.stderr.readline() == f"{job.id}: 0% queued\n"
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate()
    assert watch.returncode == 130
    assert err == f"detached; the work goes on. Follow it again: bitpress watch {job.id}\n"
    assert not client.get(job.id).state.terminal


def test_watch_outlives_the_api(service: ApiProcess, worker: PlayedWorker, job: Job) -> None:
    watch = start_bitpress("watch", job.id, "--json")
    assert watch.stdout is not None
    seen = [json.loads(watch.stdout.readline())]
    claim = worker.claim(job)
    seen.append(json.loads(watch.stdout.readline()))
    service.kill()
    worker.record(claim, log="said while nobody listened")
    service.start()
    worker.succeed(claim, content_of(job))
    out, _ = watch.communicate()
    assert watch.returncode == 0
    seen += [json.loads(line) for line in out.splitlines()]
    assert [event.get("state") or event["message"] for event in seen] == [
        "queued",
        "running",
        "said while nobody listened",
        "succeeded",
    ]


def test_waiting_can_be_limited(job: Job) -> None:
    done = bitpress("watch", job.id, "--timeout", "0.01")
    assert done.returncode == 7
    assert "error [timeout]: " in done.stderr


def test_submit_and_wait_prints_one_document(client: Client, worker: PlayedWorker, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    waiting = start_bitpress("submit", str(path), "--wait", "--json")
    assert waiting.stderr is not None
    job_id = waiting.stderr.readline().partition(":")[0]
    claim = worker.claim(client.get(job_id))
    worker.succeed(claim, content_of(claim.job))
    out, _ = waiting.communicate()
    assert waiting.returncode == 0
    assert json.loads(out)["state"] == "succeeded"
    assert len(out.splitlines()) == 1


def test_logs_tell_what_happened(worker: PlayedWorker, job: Job) -> None:
    follow = start_bitpress("logs", "-f", job.id)
    claim = worker.claim(job)
    worker.record(claim, log="drawing sequences", progress=Progress(phase="preparing"), block=block_record(7))
    so_far = bitpress("logs", job.id, "--json")
    worker.fail(claim, "bad-checkpoint", "tensors missing")
    out, _ = follow.communicate()
    assert follow.returncode == 0
    for text in ("queued (attempt 0)", "running (attempt 1)", "drawing sequences", "block 7 published: 1007 bytes"):
        assert text in out
    assert out.rstrip().endswith("failed (attempt 1): [bad-checkpoint] tensors missing")
    types = [json.loads(line)["type"] for line in so_far.stdout.splitlines()]
    assert sorted(types) == ["block", "log", "progress", "state", "state"]


def test_a_report_as_a_page_and_jobs_by_bits(client: Client, worker: PlayedWorker, job: Job, tmp_path: Path) -> None:
    worker.succeed(worker.claim(job), content_of(job) | {"report.html": b"<!doctype html><p>whole</p>"})
    other = client.submit(parse_spec(SPEC | {"method": {"kind": "septq", "bits": 2}}))
    worker.succeed(worker.claim(other), content_of(other, perplexity=14.0))
    file = tmp_path / "report.html"
    assert bitpress("report", job.id, "--html", str(file)).returncode == 0
    assert file.read_text() == "<!doctype html><p>whole</p>"
    assert bitpress("report", job.id, "--html", str(file), "--json").returncode == 2
    absent = bitpress("report", other.id, "--html", str(tmp_path / "absent.html"))
    assert absent.returncode == 3 and "no report.html" in absent.stderr and not (tmp_path / "absent.html").exists()
    rows = list(csv.DictReader(bitpress("compare", job.id, other.id, "--csv").stdout.splitlines()))
    assert [(row["job"], row["on_front"]) for row in rows] == [(job.id, "yes"), (other.id, "no")]
    assert job.id in bitpress("compare", job.id, other.id).stdout


def test_reports_side_by_side(client: Client, worker: PlayedWorker, job: Job) -> None:
    worker.succeed(worker.claim(job), content_of(job))
    other = client.submit(parse_spec(SPEC | {"method": {"kind": "septq", "bits": 2}}))
    worker.succeed(worker.claim(other), content_of(other, perplexity=14.0))
    table = bitpress("report", job.id, other.id).stdout
    rows = {line[:24].strip(): line[24:].split("   ") for line in table.splitlines()}
    row = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in rows.items()}
    assert row["job"] == [job.id, other.id]
    assert row["method"] == ["spqr, 3 bits", "septq, 2 bits"]
    assert row["bits per weight"] == ["3.625", "3.625"]
    assert row["bytes before"] == ["8.2 kB", "8.2 kB"]
    assert row["bytes after"] == ["1.9 kB", "1.9 kB"]
    assert row["perplexity held-out.txt"] == ["10.250 -> 11.500", "10.250 -> 14.000"]
    assert row["mean relative error"] == ["0.02", "0.02"]
    assert row["outlier share"] == ["1.250%", "1.250%"]  # (1024 * 0.02 + 3072 * 0.01) / 4096
    assert row["time calibrating"] == ["1:15", "1:15"]
    one = json.loads(bitpress("report", job.id, "--json").stdout)
    both = json.loads(bitpress("report", job.id, other.id, "--json").stdout)
    assert one == both[job.id] == report_of(job).model_dump(mode="json")
    assert bitpress("report", job.id, "--markdown").stdout.startswith("# Report\n")
    assert bitpress("report", job.id, other.id, "--markdown").returncode == 2


def test_a_sweep_is_followed_and_compared_by_its_id(client: Client, worker: PlayedWorker, tmp_path: Path) -> None:
    methods = [{"kind": "spqr", "bits": bits} for bits in (2, 3, 4)]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(SPEC | {"method": methods}))
    submitted = bitpress("submit", str(path), "--idempotency-key", "grid")
    ids = submitted.stdout.split()
    sweep = submitted.stderr.removeprefix("sweep ").strip()
    assert submitted.returncode == 0 and len(ids) == 3 and sweep.startswith("sweep_")
    again = json.loads(bitpress("submit", str(path), "--idempotency-key", "grid", "--json").stdout)
    assert (again["sweep"], [job["id"] for job in again["jobs"]]) == (sweep, ids)
    listed = json.loads(bitpress("list", "--sweep", sweep, "--json").stdout)
    assert [job["id"] for job in listed] == ids[::-1]
    assert bitpress("compare", sweep).returncode == 3

    watching = start_bitpress("watch", sweep, ids[0])
    group = worker.claim(client.get(ids[0])).group
    assert [claim.job.id for claim in group] == ids
    for claim, perplexity in zip(group[:2], (14.0, 11.5), strict=True):
        worker.succeed(claim, content_of(claim.job, perplexity))
    worker.fail(group[2], "numerical-failure", "no factor")
    _, told = watching.communicate()
    assert watching.returncode == 1 and f"{ids[2]}: error [numerical-failure]: no factor" in told
    compared = bitpress("compare", sweep, "--csv")
    assert [row["job"] for row in csv.DictReader(compared.stdout.splitlines())] == ids[:2]
    assert f"left out: job {ids[2]} has no" in compared.stderr
    assert list(json.loads(bitpress("report", sweep, "--json").stdout)) == ids[:2]
    assert bitpress("watch", "sweep_nowhere").returncode == 3
    assert bitpress("compare", ids[0], ids[2]).returncode == 3


def test_pull_verifies_and_goes_on_where_it_stopped(worker: PlayedWorker, job: Job, tmp_path: Path) -> None:
    manifest = worker.succeed(worker.claim(job), content_of(job))
    out = tmp_path / "out"
    (out / "blocks").mkdir(parents=True)
    (out / "blocks" / "00000.safetensors.part").write_bytes(BLOCK[:1000])
    done = bitpress("pull", job.id, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["directory"] == str(out)
    assert len(json.loads(done.stdout)["files"]) == len(manifest.files) == 3
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == content_of(job) | {"manifest.json": manifest.model_dump_json().encode()}
    again = bitpress("pull", job.id, "-o", str(out))
    assert (again.returncode, again.stdout) == (0, f"{out}\n")
    assert "all verified" in again.stderr


def test_methods_are_listed_with_their_parameters() -> None:
    offered = json.loads(bitpress("methods", "--json").stdout)
    assert offered
    table = bitpress("methods").stdout
    rows = [line.split() for line in table.splitlines()]
    assert ["spqr", "order", '"activation"'] in [row[:3] for row in rows]
    assert ["rtn", "group_size", "null", "columns", "of"] in [row[:5] for row in rows]
    assert ["septq", "bits", "required", "bits", "of", "a", "weight's", "code"] in rows
