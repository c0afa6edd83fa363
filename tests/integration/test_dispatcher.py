"""What the dispatcher makes of a driver that has several jobs: a real process and a real store; the test ends jobs."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import told_driver
from service_helpers import job_spec

from bitpress.jobs import Job, JobState
from bitpress.sweeps import SweepSpec
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_workers import dispatcher
from bitpress_workers.dispatcher import Dispatcher
from bitpress_workers.driver import Result

LEASE = 0.3  # a third of it is how often the dispatcher looks; nobody reaps while it is busy
BITS = (2, 3, 4)


@dataclass
class Story:
    """A sweep of three members that a dispatcher has claimed, and the directory that its driver looks at."""

    store: RedisJobStore
    jobs: Sequence[Job]
    told: Path
    stop: asyncio.Event
    serving: asyncio.Task[None]

    def end(self, bits: int, result: Result) -> None:
        (self.told / f"{bits}.part").write_text(result.model_dump_json())
        (self.told / f"{bits}.part").rename(self.told / f"{bits}.json")

    def end_driver(self, code: int) -> None:
        (self.told / "exit.part").write_text(str(code))
        (self.told / "exit.part").rename(self.told / "exit")

    async def becomes(self, number: int, state: JobState) -> Job:
        while (job := await self.store.get(self.jobs[number].id)).state is not state:
            await asyncio.sleep(0.02)
        return job


@pytest.fixture
async def story(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Story]:
    monkeypatch.setattr(dispatcher, "GRACE_SECONDS", 0.5)
    store, told, stop = RedisJobStore.from_url(redis_url), tmp_path / "told", asyncio.Event()
    told.mkdir()
    methods = [{"kind": "spqr", "bits": bits} for bits in BITS]
    sweep = SweepSpec.model_validate(json.loads(job_spec().model_dump_json()) | {"method": methods})
    jobs, _ = await store.create_sweep("local", sweep)
    serving = asyncio.create_task(_dispatcher(store, redis_url, tmp_path, told).run(stop))
    found = Story(store, jobs, told, stop, serving)
    for number in range(len(jobs)):
        await found.becomes(number, JobState.RUNNING)
    yield found
    found.end_driver(0)
    stop.set()
    await serving
    await store.aclose()


def _dispatcher(
    store: RedisJobStore, redis_url: str, tmp_path: Path, told: Path, stall_seconds: float = 1800.0
) -> Dispatcher:
    return Dispatcher(
        stall_seconds=stall_seconds,
        store=store,
        redis_url=redis_url,
        storage_url=tmp_path.as_uri(),
        ray_address="local",
        logs=tmp_path / "logs",
        poll_seconds=0.05,
        lease_seconds=LEASE,
        driver_command=(sys.executable, told_driver.__file__, str(told)),
    )


async def test_a_member_that_ends_is_told_of_while_the_others_run(story: Story) -> None:
    story.end(3, Result(files={"manifest.json": "key"}))
    await story.becomes(1, JobState.SUCCEEDED)
    story.end(2, Result(code="numerical-failure", message="no factor"))
    failed = await story.becomes(0, JobState.FAILED)
    assert failed.error is not None and failed.error.message == "no factor"
    assert (await story.store.get(story.jobs[2].id)).state is JobState.RUNNING
    story.end(4, Result(files={"manifest.json": "key"}, code="gate-failed", message="too far"))
    story.end_driver(1)
    missed = await story.becomes(2, JobState.FAILED)
    assert missed.error is not None and missed.error.code == "gate-failed"
    assert await story.store.files(missed.id) == {"manifest.json": "key"}


async def test_who_is_paused_or_cancelled_need_not_wait_for_a_driver_that_is_busy_with_the_others(story: Story) -> None:
    await story.store.pause(story.jobs[0].id, "local")
    await story.store.request_cancel(story.jobs[1].id)
    await story.becomes(0, JobState.PAUSED)
    await story.becomes(1, JobState.CANCELLED)
    assert (await story.store.get(story.jobs[2].id)).state is JobState.RUNNING
    await story.store.pause(story.jobs[2].id, "local")
    await story.becomes(2, JobState.PAUSED)  # with the last one the driver is ended


async def test_a_driver_that_dies_costs_those_that_had_not_ended(story: Story) -> None:
    story.end(2, Result(files={"manifest.json": "key"}))
    await story.becomes(0, JobState.SUCCEEDED)
    story.end_driver(7)
    for number in (1, 2):
        lost = await story.becomes(number, JobState.QUEUED)
        assert (lost.failures, lost.attempt) == (1, 1)
        assert lost.error is not None and lost.error.code == "worker-lost" and "exit code 7" in lost.error.message
    assert (await story.store.get(story.jobs[0].id)).state is JobState.SUCCEEDED


async def test_a_member_that_fails_for_now_is_tried_again_while_the_others_run(story: Story) -> None:
    story.end(3, Result(code="store-failure", message="the bucket was away"))
    again = await story.becomes(1, JobState.QUEUED)
    assert again.failures == 1
    assert [(await story.store.get(story.jobs[number].id)).state for number in (0, 2)] == [JobState.RUNNING] * 2


async def test_members_that_are_drained_go_back_together(story: Story) -> None:
    story.stop.set()
    story.end(2, Result(released=True))
    story.end(3, Result(files={"manifest.json": "key"}))
    await story.becomes(1, JobState.SUCCEEDED)
    assert (await story.store.get(story.jobs[0].id)).state is JobState.RUNNING
    story.end(4, Result(released=True))
    story.end_driver(0)
    for number in (0, 2):
        assert (await story.becomes(number, JobState.QUEUED)).failures == 0
    again = await story.store.claim("another", 60.0)
    assert again is not None and [claim.job.id for claim in again.group] == [story.jobs[0].id, story.jobs[2].id]


async def test_a_driver_that_stands_still_is_ended_and_its_job_goes_on_elsewhere(
    redis_url: str, tmp_path: Path
) -> None:
    store, told, stop = RedisJobStore.from_url(redis_url), tmp_path / "told", asyncio.Event()
    told.mkdir()
    job, _ = await store.create("local", job_spec())
    serving = asyncio.create_task(_dispatcher(store, redis_url, tmp_path, told, stall_seconds=1.0).run(stop))
    while (lost := await store.get(job.id)).failures == 0:  # the driver never says that it gets on
        await asyncio.sleep(0.02)
    stop.set()
    await serving
    assert lost.state is JobState.QUEUED and lost.error is not None
    assert (lost.error.code, lost.error.message) == ("worker-lost", "the driver stood still for 1 s")
    assert (await store.get(job.id)).state is JobState.QUEUED
    await store.aclose()
