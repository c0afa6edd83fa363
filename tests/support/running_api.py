"""The API as it really runs: uvicorn on loopback over a real Redis server and a directory of objects."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
import uvicorn
from fastapi import FastAPI
from service_helpers import LEASE, job_spec

from bitpress.artifacts import MANIFEST, ArtifactFile, Manifest
from bitpress.jobs import Job
from bitpress_service.app import create_app
from bitpress_service.artifactstore import ArtifactStore, job_key
from bitpress_service.keys import Keys
from bitpress_service.metrics import StoreMetrics
from bitpress_service.redis_client import connect
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_service.webhooks import Webhooks

CONTENTS = {
    "blocks/00000.safetensors": bytes(range(256)) * 16,
    "report.json": b'{"version": 1}',
    "report.html": b"<!doctype html><title>3.5 bits</title>",
    "report.md": "Bits per weight: 3.5 \N{BULLET} good".encode(),
}


@dataclass
class Api:
    """A running service; `client` carries the key of tenant "local"."""

    app: FastAPI
    client: httpx2.AsyncClient
    jobs: RedisJobStore
    artifacts: ArtifactStore
    keys: Keys

    async def as_tenant(self, tenant: str, *scopes: str) -> dict[str, str]:
        """Headers of somebody else."""
        key = await self.keys.create(tenant, scopes) if scopes else await self.keys.create(tenant)
        return {"Authorization": f"Bearer {key}"}

    async def succeeded_job(self, contents: Mapping[str, bytes] = CONTENTS, tenant: str = "local") -> Job:
        """A job that left these files behind."""
        job, _ = await self.jobs.create(tenant, job_spec())
        while (claim := await self.jobs.claim("worker", LEASE)) is not None and claim.job.id != job.id:
            await self.jobs.release(claim.job.id, claim.fence, delay_seconds=3600)  # an older one, which waits on
        assert claim is not None
        keys = {name: job_key(tenant, job.id, claim.fence, name) for name in (*contents, MANIFEST)}
        for name, content in contents.items():
            self.artifacts.put_bytes(keys[name], content)
        files = tuple(
            ArtifactFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        )
        manifest = Manifest(spec=job.spec, fingerprint="0" * 64, files=files)
        self.artifacts.put_bytes(keys[MANIFEST], manifest.model_dump_json().encode())
        return await self.jobs.finish(job.id, claim.fence, state="succeeded", files=keys)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Api]:
    """Serve within the test's event loop."""
    assert settings.redis_url is not None
    client = connect(settings.redis_url)
    jobs, keys = RedisJobStore(client), Keys(client)
    artifacts = ArtifactStore.from_url(settings.artifacts_url)
    app = create_app(settings, jobs, artifacts, keys, Webhooks(client), StoreMetrics(client))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    headers = {"Authorization": f"Bearer {await keys.create('local')}"}
    try:
        async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
            yield Api(app, http, jobs, artifacts, keys)
    finally:
        app.state.feed.close()
        server.should_exit = True
        await task
        await jobs.aclose()
