"""One job seen from outside: its trace through all processes, and the lines they log."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import quick_worker
from api_process import ApiProcess
from service_helpers import job_spec

from bitpress.client import Client
from bitpress.errors import Unavailable
from bitpress.jobs import Job, JobState
from bitpress_service import tracing

collector = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """(service, span) of all that comes to a real OTLP endpoint, which every process of the test is told of."""
    received: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in collector.ExportTraceServiceRequest.FromString(body).resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                received.extend((service, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv(tracing.ENDPOINT, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("BITPRESS_LOG_FORMAT", "json")
        yield received
        server.shutdown()
        thread.join()


def run_one_job(directory: Path) -> Job:
    """Through the API, a dispatcher and a driver, each a process of its own; all have ended when this returns."""
    api = ApiProcess(directory)
    api.start()
    command = [sys.executable, quick_worker.__file__, "dispatch", api.redis_url, str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        with (directory / "dispatcher.log").open("w") as log:
            dispatcher = subprocess.Popen(command, env=environment, stderr=log)
        with Client(api.url, api.key) as client:
            job = client.wait(client.submit(job_spec()).id)
        dispatcher.terminate()
        assert dispatcher.wait() == 0
        api.terminate()
    finally:
        api.stop()
    return job


def test_a_job_leaves_one_trace_and_lines_that_name_it(spans: list[tuple[str, Any]], tmp_path: Path) -> None:
    job = run_one_job(tmp_path)
    assert job.state is JobState.SUCCEEDED, job.error
    check_trace(spans)
    check_lines(job, tmp_path)


def check_trace(spans: list[tuple[str, Any]]) -> None:
    (submit,) = (s for service, s in spans if service == "bitpress-api" and s.name == "POST /v1/jobs")
    trace = [(service, s) for service, s in spans if s.trace_id == submit.trace_id]
    ours = {name: [s for _, s in trace if s.name == name] for name in ("attempt", "drive", "block")}
    (attempt,), (drive,) = ours["attempt"], ours["drive"]
    assert drive.parent_span_id == attempt.span_id
    assert [block.parent_span_id for block in ours["block"]] == [drive.span_id] * 2
    known = {s.span_id for service, s in trace if service == "bitpress-api"}
    assert attempt.parent_span_id in known
    assert {service for service, _ in trace} == {"bitpress-api", "bitpress-dispatcher", "bitpress-driver"}


def check_lines(job: Job, directory: Path) -> None:
    dispatched = [json.loads(line) for line in (directory / "dispatcher.log").read_text().splitlines()]
    ended = next(line for line in dispatched if line["message"] == "the attempt ended: succeeded")
    assert (ended["job"], ended["attempt"], ended["block"]) == (job.id, 1, None)
    driven = [json.loads(line) for line in (directory / "logs" / f"{job.id}-1.log").read_text().splitlines()]
    assert {(line["job"], line["attempt"]) for line in driven} == {(job.id, 1)}
    assert {line["message"]: line["block"] for line in driven if line["message"].startswith("at block")} == {
        "at block 0": 0,
        "at block 1": 1,
    }
    served = [json.loads(line) for line in (directory / "api.log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message", "job", "attempt", "block"} <= line.keys() for line in served)
    assert not any("Bearer" in json.dumps(line) for line in served + driven + dispatched)


def test_an_endpoint_without_the_sdk_is_an_error_and_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(Unavailable, match=r"bitpress\[traces\]"):
        tracing.configure("api")
