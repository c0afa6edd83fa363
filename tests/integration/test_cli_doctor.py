"""`bitpress doctor` on the service's machine, and a pull that is killed, against the real API."""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from api_process import ApiProcess
from run_cli import bitpress, start_bitpress
from test_cli_service import SPEC, content_of

from bitpress.client import Client
from bitpress.jobs import Job, parse_spec
from bitpress.keys import KeyRequest
from bitpress.partial_file import PIECE_BYTES

BLOCK = "blocks/00000.safetensors"


@pytest.fixture(autouse=True)
def on_the_machine(service: ApiProcess, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("BITPRESS_STATE_DIR", str(service.state))
    monkeypatch.setenv("BITPRESS_REDIS_URL", service.redis_url)


def succeeded(service: ApiProcess, block: bytes) -> tuple[Job, dict[str, bytes]]:
    with Client(service.url, service.key) as client:
        job = client.submit(parse_spec(SPEC))
    content = content_of(job) | {BLOCK: block}
    service.worker().succeed(service.worker().claim(job), content)
    return job, content


def doctor(**environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = bitpress("doctor", "--json", **environment)
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_service_without_a_dispatcher(service: ApiProcess) -> None:
    code, checks = doctor()
    assert (code, checks["dispatchers"]["state"]) == (1, "failed")
    well = "service clock key versions redis storage"
    for name in (*well.split(), "job store", "artifact store", "redis log", "redis rights"):
        assert checks[name]["state"] == "ok", checks[name]
    assert {"disk, state", "disk, artifacts"} <= set(checks)
    assert not list((service.state / "artifacts").glob("doctor*")), "nothing is left behind"


def test_a_redis_that_may_lose_jobs(service: ApiProcess) -> None:
    with redis.Redis.from_url(service.redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        try:
            _, checks = doctor()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")
    assert checks["redis memory"]["state"] == checks["redis log"]["state"] == checks["job store"]["state"] == "failed"
    assert "allkeys-lru" in checks["redis memory"]["found"] and "noeviction" in checks["redis memory"]["advice"]


def test_what_the_service_itself_cannot_reach(service: ApiProcess, tmp_path: Path) -> None:
    _, checks = doctor(BITPRESS_REDIS_URL="redis://127.0.0.1:9", RAY_ADDRESS="10.0.0.1:6380", RAY_AUTH_MODE="")
    assert checks["redis"]["state"] == checks["ray"]["state"] == "failed"
    assert "RAY_AUTH_MODE=token" in checks["ray"]["advice"]
    _, checks = doctor(
        BITPRESS_STORAGE_URL="s3://no-such-bucket/x", AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ALLOW_HTTP="1",
        AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_REGION="x", AWS_EC2_METADATA_DISABLED="true",
        RAY_ADDRESS="10.0.0.1:6380", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="x",
    )  # fmt: skip
    assert checks["storage"]["state"] == "failed" and checks["ray"]["state"] == "ok"
    code, checks = doctor(BITPRESS_LEASE_SECONDS="never")
    assert code == 1 and checks["this machine"]["found"].startswith("bitpress: BITPRESS_LEASE_SECONDS: ")


def test_a_disk_without_room(service: ApiProcess, tiny_disk: Path) -> None:
    _, checks = doctor(BITPRESS_STORAGE_URL=tiny_disk.as_uri())
    assert checks["disk, artifacts"]["state"] == "failed" and "Make room" in checks["disk, artifacts"]["advice"]


def test_no_key_is_in_the_log(service: ApiProcess) -> None:
    wrong = f"bp_{'x' * 49}"
    with Client(service.url, service.key) as client:
        client.whoami()
        issued = client.create_key(KeyRequest(tenant="local"))
    for key in (wrong, wrong[:-1], issued.key):
        bitpress("list", BITPRESS_API_KEY=key)
        httpx2.post(f"{service.url}/ui/login", data={"key": key}, trust_env=False)
        httpx2.get(f"{service.url}/v1/jobs?key={key}", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    log = (service.state / "api.log").read_text()
    assert "/v1/jobs?key=bp_***" in log and not any(key in log for key in (service.key, issued.key, wrong))


def test_jobs_are_taken_in_after_redis_was_lost(service: ApiProcess, tmp_path: Path) -> None:
    job, content = succeeded(service, os.urandom(1000))
    service.kill()
    with redis.Redis.from_url(service.redis_url) as client:
        client.flushall()
    service.start()
    assert bitpress("get", job.id).returncode == 3
    done = bitpress("doctor", "--import", "--json")
    assert done.returncode == 0, done.stderr
    assert {"job_id": job.id, "tenant": "local", "state": "taken-in", "why": ""} in json.loads(done.stdout)["jobs"]
    shown = bitpress("doctor", "--import")
    assert shown.returncode == 0 and job.id in shown.stdout and "known" in shown.stderr
    assert bitpress("pull", job.id, "--out", str(tmp_path)).returncode == 0
    assert {name: (tmp_path / name).read_bytes() for name in content} == content


class Wire:
    """A connection to the API that counts what comes over it; the first piece of a file may get stuck in it."""

    def __init__(self, target: str, *, sticky: bool = False) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = host, int(port)
        self._sticky = sticky
        self.num_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            stuck = threading.Event()
            threading.Thread(target=self._up, args=(near, far, stuck), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near, stuck), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket, stuck: threading.Event) -> None:
        while data := _received(near):
            if self._sticky and b"bytes=0-" in data:
                stuck.set()
            far.sendall(data)

    def _down(self, far: socket.socket, near: socket.socket, stuck: threading.Event) -> None:
        while data := _received(far):
            if stuck.is_set():
                return
            self.num_bytes += len(data)
            try:
                near.sendall(data)
            except OSError:
                return


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def test_a_pull_that_is_killed_goes_on_with_the_pieces_that_are_missing(service: ApiProcess, tmp_path: Path) -> None:
    block = os.urandom(4 * PIECE_BYTES + 1)
    job, content = succeeded(service, block)
    sticky, counting = Wire(service.url, sticky=True), Wire(service.url)
    journal = tmp_path / f"{BLOCK}.part.pieces"
    pulling = start_bitpress("pull", job.id, "--out", str(tmp_path), BITPRESS_API_URL=sticky.url)
    while not journal.is_file() or len(journal.read_text().splitlines()) < 5:  # a head and all pieces but the first
        assert pulling.poll() is None, pulling.communicate()
        time.sleep(0.02)
    pulling.kill()
    pulling.communicate()
    assert not (tmp_path / BLOCK).exists() and not (tmp_path / "manifest.json").exists()
    done = bitpress("pull", job.id, "--out", str(tmp_path), BITPRESS_API_URL=counting.url)
    assert done.returncode == 0, done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in content} == content
    assert PIECE_BYTES < counting.num_bytes < 2 * PIECE_BYTES, "only what was missing came"
    sticky.close()
    counting.close()
