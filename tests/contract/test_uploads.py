"""Uploads whose process or whose storage is killed half-way: an object is there whole, or it is not there."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bucket
import pytest

from bitpress.errors import StoreError
from bitpress_service import artifactstore
from bitpress_service.artifactstore import ArtifactStore, job_key

KEY = job_key("acme", "job_1", 3, "blocks/00000.safetensors")
PART_BYTES = 5 * 2**20  # the smallest that S3 takes
SIZE = 4 * PART_BYTES + 7
UPLOAD = (
    "import os, sys; from bitpress_service import artifactstore as a; a.PART_BYTES = 5 * 2**20\n"
    "a.ArtifactStore.from_url(sys.argv[1]).put_bytes(sys.argv[2], b'x' * int(sys.argv[3]))"
)
SERVE = """
import bucket, pathlib, sys, time
with bucket.nanio(pathlib.Path(sys.argv[1]), int(sys.argv[2])) as server:
    print(server.address, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What an S3 server of the test's own keeps."""
    (tmp_path / "s3" / "bitpress").mkdir(parents=True)
    return tmp_path / "s3"


def uploading(url: str, size: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", UPLOAD, url, KEY, str(size)])


def kill_once(process: subprocess.Popen[bytes], has_begun: Callable[[], object]) -> None:
    while not has_begun() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_an_upload_to_a_bucket_that_is_killed_leaves_no_object(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket.serving(directory, monkeypatch) as server:
        server.held = "partNumber=3"
        process = uploading("s3://bitpress/", SIZE)
        kill_once(process, lambda: any(server.held in line for line in server.requests))
        assert process.returncode == -signal.SIGKILL
        server.held = None
        store = ArtifactStore.from_url("s3://bitpress/")
        assert list(store.objects("t/")) == []
        with pytest.raises(StoreError):
            store.get_bytes(KEY)
        store.put_bytes(KEY, b"of the next attempt")
        assert store.get_bytes(KEY) == b"of the next attempt"


def test_an_upload_to_a_directory_that_is_killed_leaves_no_part_of_an_object(tmp_path: Path) -> None:
    store, size = ArtifactStore.from_url(tmp_path.as_uri()), 2**27
    kill_once(uploading(tmp_path.as_uri(), size), lambda: [path for path in tmp_path.rglob("*") if path.is_file()])
    found = list(store.objects("t/"))
    assert [each.bytes for each in found] in ([], [size]), "it is there whole, or it is not there"
    if not found:
        store.put_bytes(KEY, b"of the next attempt")
        assert store.get_bytes(KEY) == b"of the next attempt"


@pytest.fixture
def killable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts, and starts again, one S3 server at one address, as a process of its own."""
    running: list[subprocess.Popen[str]] = []
    port = "0"

    def start() -> subprocess.Popen[str]:
        nonlocal port
        path = os.pathsep.join(sys.path)
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", SERVE, str(directory), port],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            )
        )
        assert running[-1].stdout is not None
        server = bucket.Server(running[-1].stdout.readline().strip(), directory)
        port = server.address.rpartition(":")[2]
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_storage_that_is_killed_while_it_is_written_to_holds_the_whole_object_or_none(
    directory: Path, killable: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = killable()
    process = uploading("s3://bitpress/", SIZE)
    while not any(path.stat().st_size > PART_BYTES / 2 for path in directory.rglob("*") if path.is_file()):
        assert process.poll() is None
        time.sleep(0.001)
    server.kill()
    server.wait()
    killable()
    process.wait()  # it tries again for a while, and then says so
    monkeypatch.setattr(artifactstore, "PART_BYTES", PART_BYTES)
    store = ArtifactStore.from_url("s3://bitpress/")
    found = list(store.objects("t/"))
    assert [each.bytes for each in found] == ([SIZE] if process.returncode == 0 else [])
    if not found:
        store.put_bytes(KEY, b"x" * SIZE)
    assert store.sha256(KEY) == hashlib.sha256(b"x" * SIZE).hexdigest()
