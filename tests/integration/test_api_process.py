"""The API as a process of its own: start, stop, and what it refuses to do."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from service_helpers import job_spec

from bitpress_service import embedded_redis

COMMAND = [sys.executable, "-m", "bitpress_service"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    embedded_redis.stop(tmp_path / "state" / "redis")


@pytest.fixture
def process(state_dir: Path) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """The API on its embedded default, and a client with the key it wrote."""
    port = free_port()
    environment = os.environ | {"BITPRESS_STATE_DIR": str(state_dir), "BITPRESS_PORT": str(port)}
    with subprocess.Popen(COMMAND, env=environment, stderr=subprocess.PIPE, text=True) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            wait_until_ready(process, client)
            client.headers["Authorization"] = f"Bearer {(state_dir / 'api-key').read_text().strip()}"
            yield process, client
        process.kill()


def test_a_key_that_was_made_beforehand_is_the_first_one(state_dir: Path, tmp_path: Path) -> None:
    port, key = free_port(), "k" * 64
    (tmp_path / "key").write_text(f"{key}\n")
    environment = os.environ | {
        "BITPRESS_STATE_DIR": str(state_dir),
        "BITPRESS_PORT": str(port),
        "BITPRESS_FIRST_KEY_FILE": str(tmp_path / "key"),
    }
    with subprocess.Popen(COMMAND, env=environment, stderr=subprocess.PIPE, text=True) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            wait_until_ready(process, client)
            answers = [
                client.get("/v1/jobs", headers={"Authorization": f"Bearer {sent}"}).status_code for sent in (key, "k")
            ]
        process.kill()
    assert answers == [200, 401]
    (tmp_path / "key").write_text("short")
    refused = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "expected an API key of at least 43 characters, found 5" in refused.stderr


def wait_until_ready(process: subprocess.Popen[str], client: httpx2.Client) -> None:
    while True:
        assert process.poll() is None, process.communicate()[1]
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx2.ConnectError:
            time.sleep(0.05)


def test_it_starts_on_nothing_and_stops_with_a_stream_open(
    process: tuple[subprocess.Popen[str], httpx2.Client], state_dir: Path
) -> None:
    api, client = process
    job = client.post("/v1/jobs", json=job_spec().model_dump(mode="json")).json()
    with client.stream("GET", job["urls"]["events"]) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: state"
        api.send_signal(signal.SIGTERM)
        # The stream ends as a whole one, not as one that broke off.
        assert [line for line in lines if line.startswith("event:")] == []
    assert api.wait() == -signal.SIGTERM
    assert "Traceback" not in api.communicate()[1]
    assert {path.name for path in state_dir.iterdir()} == {"api-key", "artifacts", "redis"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (state_dir, *state_dir.iterdir()))


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_it_refuses_to_be_reached_from_outside_without_a_key(state_dir: Path) -> None:
    result = run(BITPRESS_STATE_DIR=str(state_dir), BITPRESS_HOST="0.0.0.0", BITPRESS_PORT=str(free_port()))
    assert result.returncode == 1
    assert result.stderr.startswith("bitpress: refusing to listen on 0.0.0.0: there is no API key yet")


def test_it_says_that_redis_is_not_there(tmp_path: Path) -> None:
    result = run(BITPRESS_STATE_DIR=str(tmp_path), BITPRESS_REDIS_URL=f"unix://{tmp_path}/absent.sock")
    assert result.returncode == 1
    assert result.stderr.startswith("bitpress: Redis: ") and "Traceback" not in result.stderr
