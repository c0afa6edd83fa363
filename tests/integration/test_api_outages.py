"""The API while Redis is full, or killed and started again."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
from running_api import Api, serving
from service_helpers import LEASE, block_record, job_spec

from bitpress_service import embedded_redis
from bitpress_service.settings import Settings


@pytest.fixture
async def lonely_api(tmp_path: Path) -> AsyncIterator[Api]:
    """An API over a Redis server of its own, in `tmp_path / "redis"`."""
    data = tmp_path / "redis"
    async with serving(Settings(state_dir=tmp_path, redis_url=embedded_redis.start(data))) as api:
        yield api
    embedded_redis.stop(data)


async def test_a_full_redis_is_named_and_leaves_nothing_half_done(lonely_api: Api) -> None:
    api, body = lonely_api, job_spec().model_dump(mode="json")
    assert (await api.client.post("/v1/jobs", json=body)).status_code == 202
    with redis.Redis.from_url(api.app.state.settings.redis_url) as client:
        client.config_set("maxmemory", "1")
        refused = await api.client.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert "maxmemory" in refused.json()["detail"] and refused.headers["retry-after"]
        client.config_set("maxmemory", "0")
    assert len((await api.client.get("/v1/jobs")).json()["data"]) == 1
    assert (await api.client.post("/v1/jobs", json=body)).status_code == 202


async def test_a_stream_outlives_a_redis_that_is_killed(lonely_api: Api, tmp_path: Path) -> None:
    api = lonely_api
    job, _ = await api.jobs.create("local", job_spec())
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    async with api.client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        for index in range(3):
            data = tmp_path / "redis"
            os.kill(int((data / embedded_redis.PIDFILE).read_text()), signal.SIGKILL)
            embedded_redis.start(data)
            await api.jobs.record(job.id, claim.fence, block=block_record(index))
        await api.jobs.request_cancel(job.id)
        await api.jobs.finish(job.id, claim.fence, state="cancelled")
        seen += [line async for line in lines]
    ids = [line.removeprefix("id: ") for line in seen if line.startswith("id: ")]
    assert ids == [event.id for event in await api.jobs.events(job.id)] and len(ids) == 7
