"""An artifact of 2 GB into a bucket and out again, beside plain obstore: real S3 server (nanio), real API, real client.

Ours hashes what it publishes, and on the way back every file; files come through the API, or from signed addresses.
Plain obstore puts and gets the same objects, with its own defaults, and hashes nothing.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
from machine import save
from obstore.store import from_url

from bitpress.client import Client
from bitpress.jobs import parse_spec
from bitpress_service.artifactstore import ArtifactStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from api_process import ApiProcess, PlayedWorker

FILES, FILE_BYTES = 16, 128 * 2**20  # blocks of that size are those of a 30B model at 3 bits
ROUNDS = 2
URL = "s3://bitpress/artifacts"
SPEC = {
    "model": {"uri": "org/model"},
    "method": {"kind": "rtn", "bits": 4},
    "calibration": {"dataset": "c4"},
}
NAMES = [f"blocks/{index:05d}.safetensors" for index in range(FILES)]


@contextmanager
def bucket(directory: Path) -> Iterator[None]:
    """Serve a bucket from a process of its own; inside, the environment says how it is reached."""
    (directory / "bitpress").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    keys = {"NANIO_ACCESS_KEY": "bench", "NANIO_SECRET_KEY": "bench-secret"}
    command = [str(Path(sys.executable).with_name("nanio")), "serve", "--data-dir", str(directory), "--no-access-log"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | keys, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    while not listens(port):
        time.sleep(0.05)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def api(state: Path, presign_seconds: int) -> Iterator[ApiProcess]:
    os.environ |= {"BITPRESS_STORAGE_URL": URL, "BITPRESS_PRESIGN_SECONDS": str(presign_seconds)}
    process = ApiProcess(state)
    process.start()
    try:
        yield process
    finally:
        process.stop()


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def upload(put: Callable[[str, bytes], object], prefix: str, data: bytes) -> None:
    for name in NAMES:
        put(f"{prefix}/{name}", data)


def put_hashed(store: ArtifactStore, key: str, data: bytes) -> None:
    """What a shard does with a block."""
    hashlib.sha256(data).hexdigest()
    store.put_bytes(key, data)


def download_plain(prefix: str, directory: Path) -> None:
    store = from_url(URL)
    for number, name in enumerate(NAMES):
        with (directory / str(number)).open("wb") as file:
            for chunk in obstore.get(store, f"{prefix}/{name}").stream():
                file.write(chunk)


def pull(process: ApiProcess, data: bytes, directory: Path) -> Callable[[], object]:
    """A call that pulls an artifact of all files, which lies there when this returns."""
    with Client(process.url, process.key) as client:
        job = client.submit(parse_spec(SPEC))
        worker = PlayedWorker(process.redis_url, URL)
        worker.succeed(worker.claim(job), dict.fromkeys(NAMES, data))

    def run() -> None:
        with Client(process.url, process.key) as client:
            client.pull(job.id, directory)

    return run


def one_round(scratch: Path, data: bytes) -> dict[str, float]:
    """Seconds of every way, over a bucket that is empty again in the end."""
    plain, ours, out = from_url(URL), ArtifactStore.from_url(URL), scratch / "out"
    seconds = {
        "upload_plain": timed(lambda: upload(lambda key, of: obstore.put(plain, key, of), "plain", data)),
        "upload": timed(lambda: upload(lambda key, of: put_hashed(ours, key, of), "ours", data)),
        "download_plain": timed(lambda: download_plain("plain", fresh(out))),
    }
    for way, presign_seconds in (("download", 0), ("download_signed", 600)):
        with api(fresh(scratch / "state"), presign_seconds) as process:
            seconds[way] = timed(pull(process, data, fresh(out)))
    fresh(scratch / "served" / "bitpress")
    return {way: round(of, 2) for way, of in seconds.items()}


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def main() -> None:
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as directory, bucket(Path(directory) / "served"):
        data = os.urandom(FILE_BYTES)
        rounds = [one_round(Path(directory), data) for _ in range(ROUNDS)]
    best = {way: min(of[way] for of in rounds) for way in rounds[0]}
    megabytes = FILES * FILE_BYTES / 1e6
    numbers: dict[str, Any] = {
        "bytes": FILES * FILE_BYTES,
        "load_before": load,
        "seconds": rounds,
        "megabytes_a_second": {way: round(megabytes / of) for way, of in best.items()},
        "speed_beside_plain_obstore": {
            way: round(best[f"{way.partition('_')[0]}_plain"] / best[way], 2)
            for way in ("upload", "download", "download_signed")
        },
    }
    save("transfer", numbers)


if __name__ == "__main__":
    main()
