"""The API as a process of its own over a real Redis and a real directory; a test plays the worker."""

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from bitpress.artifacts import MANIFEST, ArtifactFile, Manifest
from bitpress.client import Client
from bitpress.errors import Unavailable
from bitpress.jobs import Failure, Job
from bitpress_service import embedded_redis
from bitpress_service.artifactstore import ArtifactStore, job_key
from bitpress_service.jobstore import BlockRecord, Claim
from bitpress_service.redis_client import connect
from bitpress_service.redis_jobstore import RedisJobStore

T = TypeVar("T")
LEASE_SECONDS = 600.0


class ApiProcess:
    """`python -m bitpress_service` on loopback, its state in one directory; no worker but the test."""

    def __init__(self, state: Path) -> None:
        self.state = state
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.redis_url = embedded_redis.start(state / "redis")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> str:
        return (self.state / "api-key").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        """What points a client at this service."""
        return {"BITPRESS_API_URL": self.url, "BITPRESS_API_KEY": self.key}

    def start(self) -> None:
        environment = os.environ | {
            "BITPRESS_STATE_DIR": str(self.state),
            "BITPRESS_REDIS_URL": self.redis_url,
            "BITPRESS_PORT": self.url.rpartition(":")[2],
        }
        with (self.state / "api.log").open("ab") as log:
            command = [sys.executable, "-m", "bitpress_service"]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while not self._answers():
            assert self._process.poll() is None, (self.state / "api.log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the API; Redis goes on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, as a deployment does; returns when it has ended."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def stop(self) -> None:
        self.kill()
        embedded_redis.stop(self.state / "redis")

    def worker(self) -> "PlayedWorker":
        return PlayedWorker(self.redis_url, (self.state / "artifacts").as_uri())

    def _answers(self) -> bool:
        if not (self.state / "api-key").exists():
            return False
        try:
            with Client(self.url, self.key) as client:
                client.methods()
        except Unavailable:
            return False
        return True


class PlayedWorker:
    """Takes jobs and ends them as a dispatcher and a driver would, one step at a time."""

    def __init__(self, redis_url: str, storage_url: str) -> None:
        self._redis_url = redis_url
        self._artifacts = ArtifactStore.from_url(storage_url)

    def claim(self, job: Job) -> Claim:
        """Claim the next job, which has to be this one."""
        claim = self.run(lambda store: store.claim("test", LEASE_SECONDS))
        assert claim is not None
        assert claim.job.id == job.id
        return claim

    def record(self, claim: Claim, **what: Any) -> None:
        self.run(lambda store: store.record(claim.job.id, claim.fence, **what))

    def succeed(self, claim: Claim, content: dict[str, bytes]) -> Manifest:
        """Publish `content` with its manifest and end the job."""
        files = tuple(
            ArtifactFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in content.items()
        )
        manifest = Manifest(spec=claim.job.spec, fingerprint="0" * 64, files=files)
        keys = {}
        for name, data in (content | {MANIFEST: manifest.model_dump_json().encode()}).items():
            keys[name] = job_key(claim.job.tenant, claim.job.id, claim.fence, name)
            self._artifacts.put_bytes(keys[name], data)
        self.run(lambda store: store.finish(claim.job.id, claim.fence, state="succeeded", files=keys))
        return manifest

    def blocks(self, job_id: str) -> dict[int, BlockRecord]:
        return self.run(lambda store: store.blocks(job_id))

    def fail(self, claim: Claim, code: str, message: str) -> None:
        error = Failure(code=code, message=message, retryable=False, attempt=claim.job.attempt)
        self.run(lambda store: store.finish(claim.job.id, claim.fence, state="failed", error=error))

    def run(self, step: Callable[[RedisJobStore], Awaitable[T]]) -> T:
        async def with_store() -> T:
            store = RedisJobStore(connect(self._redis_url))
            try:
                return await step(store)
            finally:
                await store.aclose()

        return asyncio.run(with_store())
