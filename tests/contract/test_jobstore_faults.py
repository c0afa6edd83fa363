"""The job store when things die: the server, the workers, or both again and again."""

import asyncio
import os
import random
import shutil
import signal
from contextlib import aclosing, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from service_helpers import LEASE, block_record, failure, job_spec

from bitpress.errors import Conflict, Unavailable
from bitpress.jobs import TRANSITIONS, JobEdit, JobState, StateEvent
from bitpress_service import embedded_redis
from bitpress_service.artifactstore import job_key
from bitpress_service.jobstore import Fenced
from bitpress_service.redis_jobstore import RedisJobStore

JOBS = 12


async def test_a_server_killed_and_started_again_has_every_acknowledged_write(own_redis_dir: Path) -> None:
    url = embedded_redis.start(own_redis_dir)
    async with aclosing(RedisJobStore.from_url(url)) as store:
        queued, _ = await store.create("local", job_spec(), idempotency_key="key")
        claim = await store.claim("worker", LEASE)
        assert claim is not None
        await store.record(claim.job.id, claim.fence, block=block_record(0))
        before = await store.get(queued.id), await store.events(queued.id), await store.blocks(queued.id)

        os.kill(int((own_redis_dir / embedded_redis.PIDFILE).read_text()), signal.SIGKILL)
        assert embedded_redis.start(own_redis_dir) == url
        assert before == (await store.get(queued.id), await store.events(queued.id), await store.blocks(queued.id))
        assert await store.create("local", job_spec(), idempotency_key="key") == (before[0], True)
        await store.record(claim.job.id, claim.fence, block=block_record(1))
        assert set(await store.blocks(queued.id)) == {0, 1}


async def test_a_server_set_back_to_an_older_file_gives_no_fence_twice(own_redis_dir: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    async with aclosing(RedisJobStore.from_url(embedded_redis.start(own_redis_dir))) as store:
        job, _ = await store.create("local", job_spec())
        embedded_redis.stop(own_redis_dir)
        shutil.copytree(own_redis_dir, older)
        embedded_redis.start(own_redis_dir)
        forgotten = await store.claim("worker of a second that is lost", LEASE)
        assert forgotten is not None
        embedded_redis.stop(own_redis_dir)
        shutil.rmtree(own_redis_dir)
        older.rename(own_redis_dir)
        embedded_redis.start(own_redis_dir)
        assert (await store.get(job.id)).attempt == 0

        heir = await store.claim("worker", LEASE)
        assert heir is not None and heir.job.attempt == forgotten.job.attempt == 1
        with pytest.raises(Fenced):
            await store.record(job.id, forgotten.fence, block=block_record(0))
        with pytest.raises(Fenced):
            await store.finish(job.id, forgotten.fence, state="succeeded", files={"manifest.json": "x"})
        assert job_key("local", job.id, forgotten.fence, "x") != job_key("local", job.id, heir.fence, "x")
        await store.record(job.id, heir.fence, block=block_record(0))


async def test_without_a_server_every_call_says_unavailable(own_redis_dir: Path) -> None:
    async with aclosing(RedisJobStore.from_url(embedded_redis.start(own_redis_dir))) as store:
        embedded_redis.stop(own_redis_dir)
        calls = (
            store.ping(), store.create("local", job_spec()), store.get("job"), store.list("local", limit=1),
            store.request_cancel("job"), store.events("job"), store.new_events({"job": "0"}, 1),
            store.claim("worker", LEASE), store.renew("job", 1, LEASE), store.record("job", 1, log="x"),
            store.blocks("job"), store.finish("job", 1, state="cancelled"), store.release("job", 1, delay_seconds=0),
            store.reap(), store.files("job"), store.pause("job", "local"),
            store.edit("job", "local", JobEdit(name="x")), store.delete("job", "local"), store.trash(),
            store.changed("job", 1, 1),
        )  # fmt: skip
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(reply) for reply in replies] == [Unavailable] * len(calls)


async def test_a_server_that_may_drop_data_or_is_full_is_refused(own_redis_dir: Path) -> None:
    url = embedded_redis.start(own_redis_dir)
    async with aclosing(RedisJobStore.from_url(url)) as store:
        await store.ping()
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(Unavailable, match="maxmemory"):
                await store.create("local", job_spec())
            assert (await store.list("local", limit=10)).data == ()
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(Unavailable, match="allkeys-lru"):
                await store.ping()


class Chaos:
    """Workers that die, freeze and come back, beside a user who cancels and pauses; remembers every fence."""

    def __init__(self, store: RedisJobStore, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.fences: dict[str, list[int]] = {}
        self.fenced = 0

    async def work(self) -> None:
        while await self._unfinished():
            if (claim := await self.store.claim("worker", LEASE)) is None:
                continue
            self.fences.setdefault(claim.job.id, []).append(claim.fence)
            try:
                await self._attempt(claim.job.id, claim.fence, freezes=claim.job.attempt == 1)
            except Fenced:
                self.fenced += 1

    async def _attempt(self, job_id: str, fence: int, *, freezes: bool) -> None:
        if freezes or self.random.random() < 0.3:
            # Frozen for longer than its lease, and then alive again.
            await self.store.renew(job_id, fence, 0)
            await self.store.reap()
        for index in range(self.random.randrange(4)):
            await self.store.record(job_id, fence, block=block_record(index))
        match self.random.randrange(4):
            case 0:
                await self.store.release(job_id, fence, delay_seconds=0, error=failure())
            case 1:
                await self.store.finish(job_id, fence, state="failed", error=failure())
            case _:
                await self.store.finish(job_id, fence, state="succeeded", files={"manifest.json": f"a{fence}"})

    async def meddle(self) -> None:
        """Cancel some jobs; pause others, and resume them."""
        jobs = (await self.store.list("local", limit=JOBS)).data
        for job in jobs[::4]:
            await self.store.request_cancel(job.id)
        for job in jobs[1::4]:
            for step in (self.store.pause, self.store.resume):
                with suppress(Conflict):
                    await step(job.id, "local")

    async def _unfinished(self) -> bool:
        return not all(job.state.terminal for job in (await self.store.list("local", limit=JOBS)).data)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_every_job_ends_once_and_in_order(
    job_store: RedisJobStore, redis_url: str, seed: int
) -> None:
    for _ in range(JOBS):
        await job_store.create("local", job_spec())
    chaos = Chaos(job_store, seed)
    await asyncio.gather(*(chaos.work() for _ in range(4)), chaos.meddle())

    for job in (await job_store.list("local", limit=JOBS)).data:
        states = [event.state for event in await job_store.events(job.id) if isinstance(event, StateEvent)]
        assert states[0] is JobState.QUEUED and states[-1] is job.state
        assert all(after in TRANSITIONS[before] for before, after in pairwise(states)), states
        fences = chaos.fences.get(job.id, [])
        assert len(set(fences)) == len(fences) == job.attempt
        succeeded = job.state is JobState.SUCCEEDED
        assert await job_store.files(job.id) == ({"manifest.json": f"a{max(fences)}"} if succeeded else {})
    assert chaos.fenced > 0
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists("{bp}:queue", "{bp}:delayed", "{bp}:leases")
