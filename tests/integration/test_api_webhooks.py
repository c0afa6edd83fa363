"""Webhooks through the API and the command line, the API a process of its own that is killed on the way."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_process import ApiProcess
from run_cli import bitpress
from running_api import Api
from service_helpers import job_spec
from webhook_receiver import Receiver, receiving

from bitpress.advice import ADVICE
from bitpress.client import Client
from bitpress.webhooks import verify

URL = "https://hooks.example/x"


async def test_a_webhook_from_its_creation_to_its_end(api: Api) -> None:
    created = await api.client.post("/v1/webhooks", json={"url": URL, "events": ["job.failed"]})
    assert created.status_code == 201
    webhook = created.json()
    path = created.headers["location"]
    assert webhook["secret"].startswith("whsec_") and path == f"/v1/webhooks/{webhook['id']}"
    shown = {name: value for name, value in webhook.items() if name != "secret"}
    assert (await api.client.get(path)).json() == shown
    assert (await api.client.get("/v1/webhooks")).json() == {"object": "list", "data": [shown]}

    delivery = await api.client.post(f"{path}/test")
    assert delivery.status_code == 202 and delivery.json()["type"] == "webhook.test"
    assert (await api.client.get(f"{path}/deliveries")).json()["data"] == [delivery.json()]
    rotated = (await api.client.post(f"{path}/rotate")).json()
    assert rotated["secret"] != webhook["secret"]

    other = await api.as_tenant("other")
    reader = await api.as_tenant("local", "jobs:read")
    for method, end in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/rotate"), ("GET", "/deliveries")):
        assert (await api.client.request(method, path + end, headers=other)).status_code == 404
        assert (await api.client.request(method, path + end, headers=reader)).status_code == 403
    assert (await api.client.delete(path)).status_code == 204
    assert (await api.client.get(path)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"url": "hooks.example"}, {"url": "ftp://hooks.example"}, {"url": "http://hooks.example"},
        {"url": "https://user:word@hooks.example"}, {"url": URL, "events": []}, {"url": URL, "events": ["job.born"]},
        {"url": URL, "secret": "whsec_mine"}, {"url": "https://" + "x" * 3000},
    ],
)  # fmt: skip
async def test_a_webhook_that_cannot_be_is_refused(api: Api, body: dict[str, object]) -> None:
    answer = await api.client.post("/v1/webhooks", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["advice"]) == (422, ADVICE[problem["code"]])
    if problem["code"] == "invalid-request":
        assert problem["detail"].startswith("the webhook is not valid: /")
    else:
        assert (problem["code"], body) == ("forbidden-address", {"url": "http://hooks.example"})


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiProcess]:
    monkeypatch.setenv("BITPRESS_PRIVATE_WEBHOOKS", "1")
    api = ApiProcess(tmp_path)
    api.start()
    yield api
    api.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def wait_for_messages(receiver: Receiver, count: int) -> None:
    while len(receiver.messages) < count:
        time.sleep(0.05)


def test_what_happened_while_no_api_ran_is_told_by_the_next(process: ApiProcess, receiver: Receiver) -> None:
    with Client(process.url, process.key) as client:
        webhook = client.webhooks.add(receiver.url)
        job = client.submit(job_spec())
    process.kill()
    worker = process.worker()
    worker.fail(worker.claim(job), "numerical-failure", "block 0: not finite")
    assert receiver.messages == []
    process.start()
    wait_for_messages(receiver, 1)
    verify(webhook.secret, receiver.messages[0].headers, receiver.messages[0].body)
    assert json.loads(receiver.messages[0].body)["data"] == {"job_id": job.id, "status": "failed"}


def test_the_commands(process: ApiProcess, receiver: Receiver) -> None:
    environment = process.environment
    added = json.loads(bitpress("webhooks", "add", receiver.url, "--json", **environment).stdout)
    listed = bitpress("webhooks", "list", **environment)
    assert added["id"] in listed.stdout and added["secret"] not in listed.stdout
    assert bitpress("webhooks", "test", added["id"], **environment).stdout.startswith(added["id"])
    wait_for_messages(receiver, 1)
    while json.loads(bitpress("webhooks", "deliveries", added["id"], "--json", **environment).stdout)[0]["state"] != (
        "delivered"
    ):
        time.sleep(0.1)
    assert "webhook.test" in bitpress("webhooks", "deliveries", added["id"], **environment).stdout
    rotated = bitpress("webhooks", "rotate", added["id"], **environment)
    assert "whsec_" in rotated.stdout and "not shown again" in rotated.stderr
    assert bitpress("webhooks", "add", receiver.url, "--event", "job.born", **environment).returncode == 2
    assert bitpress("webhooks", "remove", added["id"], **environment).returncode == 0
    assert bitpress("webhooks", "test", added["id"], **environment).returncode == 3
