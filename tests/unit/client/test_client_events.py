"""Event streams that break off, fall silent or end."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import pytest
from http_answers import Respond, job_json, send

from bitpress.client import Client
from bitpress.errors import NotFound, Unavailable
from bitpress.jobs import JobState

Start = Callable[[Respond], str]
AT = '"at": "2026-01-01T00:00:00Z"'


def log(number: int) -> str:
    return f'event: log\nid: {number}-0\ndata: {{"type": "log", "id": "{number}-0", {AT}, "message": "m{number}"}}\n\n'


def state(number: int, name: str) -> str:
    data = f'{{"type": "state", "id": "{number}-0", {AT}, "state": "{name}", "attempt": 1}}'
    return f"event: state\nid: {number}-0\ndata: {data}\n\n"


@dataclass
class Streams:
    """Answers each connection with the next text; `!` at its end breaks the connection, an int is a status."""

    texts: list[str | int]
    job_state: str = "running"
    last_ids: list[str | None] = field(default_factory=list)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        if not handler.path.endswith("/events"):
            return send(handler, 200, job_json(self.job_state))
        self.last_ids.append(handler.headers.get("Last-Event-ID"))
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if isinstance(text, int):
            return send(handler, text, {"code": "unavailable"}, "application/problem+json")
        if told := re.findall(r'"state": "(\w+)"', text):
            self.job_state = told[-1]
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        body = text.removesuffix("!").encode()
        handler.send_header("Content-Length", str(len(body) + text.endswith("!")))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True
        return None


def test_a_broken_stream_is_opened_again_after_the_last_event(serve: Start) -> None:
    half = log(3)[:30]
    streams = Streams([": hello\n\n" + log(1) + log(2) + half + "!", 503, log(3), log(4) + state(5, "succeeded")])
    with Client(serve(streams)) as client:
        events = list(client.events("job_1"))
    assert [event.id for event in events] == ["1-0", "2-0", "3-0", "4-0", "5-0"]
    assert streams.last_ids == [None, "2-0", "2-0", "3-0"]


def test_events_after_one_that_was_seen(serve: Start) -> None:
    streams = Streams([state(9, "cancelled")])
    with Client(serve(streams)) as client:
        assert [event.id for event in client.events("job_1", after="8-0")] == ["9-0"]
    assert streams.last_ids == ["8-0"]


def test_a_job_that_ended_before_ends_the_stream_without_an_event(serve: Start) -> None:
    with Client(serve(Streams([""], job_state="failed"))) as client:
        assert list(client.events("job_1", after="9-0")) == []


def test_a_stream_that_cannot_be_opened_again_is_reported(serve: Start) -> None:
    streams = Streams([log(1), 503])
    with Client(serve(streams)) as client:
        events = client.events("job_1")
        assert next(events).id == "1-0"
        with pytest.raises(Unavailable):
            next(events)
    assert len(streams.last_ids) == 5


def test_an_answer_that_is_no_stream_is_no_event(serve: Start) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, job_json("running"))

    with Client(serve(respond)) as client, pytest.raises(Unavailable, match="text/event-stream"):
        list(client.events("job_1"))


def test_an_unknown_job_has_no_events(serve: Start) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 404, {"code": "not-found", "detail": "no job job_2"}, "application/problem+json")

    with Client(serve(respond)) as client, pytest.raises(NotFound, match="no job job_2"):
        next(client.events("job_2"))


def test_wait_returns_the_job_however_it_ended(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitpress.client.POLL_SECONDS", 0.0)
    states = ["queued", "running", "failed"]
    with Client(serve(lambda handler: send(handler, 200, job_json(states.pop(0))))) as client:
        assert client.wait("job_1").state is JobState.FAILED


def test_wait_gives_up_in_the_end(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitpress.client.POLL_SECONDS", 0.0)
    with Client(serve(Streams([""]))) as client, pytest.raises(TimeoutError, match="job_1 is still running after 0 s"):
        client.wait("job_1", timeout_seconds=0)
