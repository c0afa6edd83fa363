"""Which service is asked, with which key, and what becomes of its answers."""

import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest
from http_answers import SPEC, Respond, job_json, send

from bitpress.client import Client
from bitpress.errors import BitpressError, InvalidJob, NotFound, Unauthorized, Unavailable
from bitpress.jobs import JobFilter, JobState, parse_spec

Start = Callable[[Respond], str]


def test_no_service_is_said_with_the_address_and_a_way_out() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(Unavailable) as raised:
            client.get("job_1")
    assert url in raised.value.message
    assert "bitpress up" in raised.value.message


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(Unavailable, match="'localhost:8000'"):
        Client("localhost:8000")


def test_this_machine_is_not_asked_through_a_proxy(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(serve(lambda handler: send(handler, 200, job_json()))) as client:
        assert client.get("job_1").id == "job_1"


def test_a_submit_whose_answer_is_lost_is_sent_again_under_one_key(serve: Start) -> None:
    keys: list[str | None] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        keys.append(handler.headers.get("Idempotency-Key"))
        if len(keys) == 1:
            handler.close_connection = True  # no answer at all
        elif len(keys) == 2:
            send(handler, 502, b"bad gateway", "text/plain")
        else:
            send(handler, 202, job_json())

    with Client(serve(respond)) as client:
        assert client.submit(parse_spec(SPEC)).state is JobState.QUEUED
        client.submit(parse_spec(SPEC))
        client.submit(parse_spec(SPEC), "chosen")
    assert keys[0] is not None
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert keys[4] == "chosen"


def test_a_problem_becomes_the_error_it_stands_for(serve: Start) -> None:
    problem = {"code": "invalid-job", "detail": "no", "errors": [{"pointer": "/method/bits", "detail": "too many"}]}
    url = serve(lambda handler: send(handler, 422, problem, "application/problem+json"))
    with Client(url) as client, pytest.raises(InvalidJob, match="no") as raised:
        client.submit(parse_spec(SPEC))
    assert raised.value.details == (("/method/bits", "too many"),)


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (404, NotFound), (500, BitpressError)])
def test_an_error_without_a_problem_keeps_its_status(serve: Start, status: int, error: type[BitpressError]) -> None:
    url = serve(lambda handler: send(handler, status, b"<html>", "text/html"))
    with Client(url) as client, pytest.raises(error, match=f"HTTP {status} from http") as raised:
        client.get("job_1")
    assert type(raised.value) is error


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]", b'{"id": "job_1"}'])
def test_an_answer_of_something_else_is_not_taken_for_a_job(serve: Start, body: bytes) -> None:
    with Client(serve(lambda handler: send(handler, 200, body))) as client, pytest.raises(BitpressError) as raised:
        client.get("job_1")
    assert raised.value.code == "internal"


@pytest.mark.parametrize("job_id", ["", "..", "a/b", "a?b", "é"])
def test_what_cannot_be_an_id_is_not_sent(serve: Start, job_id: str) -> None:
    asked: list[str] = []
    with Client(serve(lambda handler: asked.append(handler.path))) as client, pytest.raises(NotFound):
        client.get(job_id)
    assert asked == []


def test_a_list_is_read_page_by_page(serve: Start) -> None:
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        first = "after" not in handler.path
        jobs = [job_json(id=f"job_{n}") for n in ((1, 2) if first else (3,))]
        send(handler, 200, {"object": "list", "data": jobs, "has_more": first, "next_cursor": "c1" if first else None})

    with Client(serve(respond)) as client:
        jobs = client.list(JobFilter(state=JobState.QUEUED))
        assert next(jobs).id == "job_1"
        assert len(asked) == 1
        assert [job.id for job in jobs] == ["job_2", "job_3"]
    assert asked == ["/v1/jobs?limit=100&state=queued", "/v1/jobs?limit=100&state=queued&after=c1"]


def test_the_key_is_sent_as_a_bearer_token(serve: Start) -> None:
    sent: list[str | None] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        sent.append(handler.headers.get("Authorization"))
        send(handler, 200, json.dumps({"object": "list", "data": []}).encode())

    with Client(serve(respond), "k") as client:
        client.methods()
    assert sent == ["Bearer k"]
