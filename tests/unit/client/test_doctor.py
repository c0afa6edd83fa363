"""What `bitpress doctor` makes of a service's answers."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from typing import Any

import pytest
from http_answers import Respond, send
from run_cli import bitpress

from bitpress.config import Service
from bitpress.doctor import Check, examine

Start = Callable[[Respond], str]

DEVICES = {"kind": "cuda", "total": 8, "free": 3, "nodes": [{"host": "a", "devices": 8}]}
CALLER: dict[str, Any] = {
    "object": "key", "id": "key_1", "tenant": "acme", "name": "", "created_at": "2026-11-23T00:00:00Z",
    "scopes": ["jobs:read", "jobs:write", "artifacts:read", "webhooks:write"], "version": version("bitpress"),
}  # fmt: skip


def dispatcher(devices: dict[str, Any] | None) -> dict[str, Any]:
    seen = "2026-11-23T00:00:00Z"
    return {"owner": "host:1", "cluster": "10.0.0.1:6380", "busy": False, "devices": devices, "seen_at": seen}


def cluster(*dispatchers: dict[str, Any]) -> dict[str, Any]:
    queue = [{"priority": 0, "jobs": 2}]
    return {"object": "cluster", "dispatchers": dispatchers, "queue": queue, "delayed": 0, "running": 1}


class Answers:
    """A service that is well but for what a test changes."""

    def __init__(self, **changed: tuple[int, dict[str, Any]]) -> None:
        well: dict[str, tuple[int, dict[str, Any]]] = {
            "livez": (200, {"status": "ok"}),
            "readyz": (200, {"status": "ok"}),
            "whoami": (200, CALLER),
            "cluster": (200, cluster(dispatcher(DEVICES))),
        }
        self.answers = well | changed
        self.clock = timedelta()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        status, body = self.answers[handler.path.rpartition("/")[2]]
        handler.date_time_string = lambda timestamp=None: format_datetime(  # type: ignore[method-assign]
            datetime.now(UTC) + self.clock, usegmt=True
        )
        kind = "application/json" if status < 400 else "application/problem+json"
        send(handler, status, body, kind)


def looked_at(url: str) -> dict[str, Check]:
    return {check.name: check for check in examine(Service(url, "a key", "the test"))}


def problem(code: str, detail: str, *errors: tuple[str, str]) -> dict[str, Any]:
    return {"code": code, "detail": detail, "errors": [{"pointer": p, "detail": d} for p, d in errors]}


def test_a_service_that_is_well(serve: Start) -> None:
    checks = looked_at(serve(Answers()))
    names = {"service", "clock", "job store", "artifact store", "key", "versions", "dispatchers", "devices"}
    assert set(checks) == names
    assert {check.state for check in checks.values()} == {"ok"}
    assert "8 cuda, 3 free" in checks["devices"].found
    assert "1 jobs run, 2 wait" in checks["dispatchers"].found


@pytest.mark.parametrize(
    ("changed", "name", "state", "found", "mend"),
    [
        (
            {"readyz": (503, problem("unavailable", "not ready", ("jobs", "Redis: refused")))},
            "job store", "failed", "Redis: refused", "BITPRESS_REDIS_URL",
        ),
        (
            {"readyz": (503, problem("unavailable", "not ready", ("artifacts", "no bucket")))},
            "artifact store", "failed", "no bucket", "BITPRESS_STORAGE_URL",
        ),
        ({"whoami": (401, problem("unauthorized", "not known"))}, "key", "failed", "not known", "bitpress login"),
        ({"whoami": (200, CALLER | {"scopes": ["jobs:read"]})}, "key", "warning", "acme", "jobs:write"),
        (
            {"whoami": (200, CALLER | {"expires_at": (datetime.now(UTC) + timedelta(days=2)).isoformat()})},
            "key", "warning", "expires", "bitpress keys create",
        ),
        ({"whoami": (200, CALLER | {"version": "9.9.1"})}, "versions", "warning", "service 9.9.1", "bitpress==9.9.1"),
        ({"cluster": (200, cluster())}, "dispatchers", "failed", "none reports", "bitpress up"),
        ({"cluster": (200, cluster(dispatcher(None)))}, "devices", "failed", "out of reach", "RAY_ADDRESS"),
        (
            {"cluster": (200, cluster(dispatcher(DEVICES | {"total": 0, "free": 0, "nodes": []})))},
            "devices", "failed", "has none", "Join hosts",
        ),
        ({"cluster": (403, problem("forbidden", "lacks jobs:read"))}, "dispatchers", "skipped", "lacks", "scope"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_remedy(
    serve: Start, changed: dict[str, Any], name: str, state: str, found: str, mend: str
) -> None:
    check = looked_at(serve(Answers(**changed)))[name]
    assert check.state == state and found in check.found and mend in check.advice


@pytest.mark.parametrize(("minutes", "words"), [(-10, "ahead of"), (10, "behind")])
def test_clocks_that_are_apart(serve: Start, minutes: int, words: str) -> None:
    answers = Answers()
    answers.clock = timedelta(minutes=minutes)
    check = looked_at(serve(answers))["clock"]
    assert check.state == "failed" and words in check.found and "NTP" in check.advice


def test_a_service_that_does_not_answer_says_who_named_it() -> None:
    (check,) = examine(Service("http://127.0.0.1:9", None, "profile lab"))
    assert check.state == "failed" and "named by profile lab" in check.found and check.advice


def test_the_command_is_one_document_and_fails_with_its_findings(serve: Start) -> None:
    def doctor(answers: Answers) -> tuple[int, dict[str, Any]]:
        done = bitpress("doctor", "--json", BITPRESS_API_URL=serve(answers), BITPRESS_API_KEY="a key")
        return done.returncode, json.loads(done.stdout)

    code, document = doctor(Answers())
    assert (code, document["ok"]) == (0, True)
    assert document["checks"][-1]["name"] == "this machine" and document["checks"][-1]["state"] == "skipped"
    assert doctor(Answers(whoami=(200, CALLER | {"version": "9.9.1"})))[0] == 0
    code, document = doctor(Answers(cluster=(200, cluster())))
    assert (code, document["ok"]) == (1, False)
    shown = bitpress("doctor", BITPRESS_API_URL=serve(Answers(cluster=(200, cluster()))), BITPRESS_API_KEY="a key")
    assert shown.returncode == 1 and "FAILED   dispatchers" in shown.stdout and "-> Nobody runs jobs." in shown.stdout
