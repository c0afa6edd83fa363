"""Sweeps in the job store: made at once or not at all, claimed together, and each member a job of its own."""

import asyncio
import json
from typing import Any

import pytest
from service_helpers import LEASE, block_record, failure, job_spec

from bitpress.errors import Conflict, TooManyJobs
from bitpress.jobs import Job, JobFilter, JobState
from bitpress.sweeps import SweepSpec, parse_submission
from bitpress_service.jobstore import Capacity, Claim, Fenced, JobStore, LeaseStatus


def sweep_spec(*bits: int, **overrides: Any) -> SweepSpec:
    methods = [{"kind": "spqr", "bits": each} for each in bits]
    parsed = parse_submission(json.loads(job_spec().model_dump_json()) | {"method": methods} | overrides)
    assert isinstance(parsed, SweepSpec)
    return parsed


async def submitted(store: JobStore, *bits: int, **overrides: Any) -> list[Job]:
    jobs, _ = await store.create_sweep("local", sweep_spec(*bits, **overrides))
    return list(jobs)


async def claimed(store: JobStore, lease_seconds: float = LEASE) -> tuple[Claim, ...]:
    claim = await store.claim("worker", lease_seconds)
    assert claim is not None
    return claim.group


async def states(store: JobStore, jobs: list[Job]) -> list[JobState]:
    return [(await store.get(job.id)).state for job in jobs]


def ids(claims: tuple[Claim, ...]) -> list[str]:
    return [claim.job.id for claim in claims]


async def test_members_are_jobs_in_the_order_of_their_methods(job_store: JobStore) -> None:
    single, _ = await job_store.create("local", job_spec())
    spec = sweep_spec(2, 3, 4)
    jobs, replayed = await job_store.create_sweep("local", spec, priority=3)
    assert not replayed and single.sweep is None
    assert [job.spec for job in jobs] == list(spec.specs())
    assert {(job.state, job.priority, job.sweep) for job in jobs} == {(JobState.QUEUED, 3, jobs[0].sweep)}
    others = await submitted(job_store, 2, 3)
    await job_store.request_cancel(jobs[1].id)

    async def listed(tenant: str = "local", limit: int = 10, **where: Any) -> list[str]:
        page = await job_store.list(tenant, limit=limit, where=JobFilter(sweep=jobs[0].sweep, **where))
        return [job.id for job in page.data]

    assert await listed() == [job.id for job in reversed(jobs)]
    assert await listed(limit=2) == [jobs[2].id, jobs[1].id]
    assert await listed(state=JobState.CANCELLED) == [jobs[1].id]
    assert await listed(tenant="other") == []
    await job_store.delete(jobs[1].id, "local")
    assert await listed() == [jobs[2].id, jobs[0].id]
    assert others[0].sweep not in (None, jobs[0].sweep)


async def test_a_key_makes_one_sweep_however_many_ask_at_once(job_store: JobStore) -> None:
    spec = sweep_spec(2, 3)
    replies = await asyncio.gather(*(job_store.create_sweep("local", spec, idempotency_key="once") for _ in range(20)))
    assert len({tuple(job.id for job in jobs) for jobs, _ in replies}) == 1
    assert sum(not replayed for _, replayed in replies) == 1
    for other in (sweep_spec(2, 4), sweep_spec(2, 3, 4)):
        with pytest.raises(Conflict):
            await job_store.create_sweep("local", other, idempotency_key="once")
    with pytest.raises(Conflict):
        await job_store.create("local", job_spec(), idempotency_key="once")


async def test_every_member_counts_and_all_come_or_none(job_store: JobStore) -> None:
    await job_store.create("local", job_spec())
    with pytest.raises(TooManyJobs, match="with 3 more, over 3 jobs"):
        await job_store.create_sweep("local", sweep_spec(2, 3, 4), max_waiting=3)
    assert len((await job_store.list("local", limit=10)).data) == 1
    assert len((await job_store.create_sweep("local", sweep_spec(2, 3), max_waiting=3))[0]) == 2


async def test_all_that_wait_of_a_sweep_are_claimed_together(job_store: JobStore) -> None:
    jobs = await submitted(job_store, 2, 3, 4, 5)
    alone, _ = await job_store.create("local", job_spec())
    await job_store.request_cancel(jobs[0].id)
    await job_store.pause(jobs[2].id, "local")
    group = await claimed(job_store)
    assert ids(group) == [jobs[1].id, jobs[3].id]
    assert ids(await claimed(job_store)) == [alone.id]
    await job_store.resume(jobs[2].id, "local")
    assert ids(await claimed(job_store)) == [jobs[2].id]

    # Each under its own fence: what happens to one of them does not touch the other.
    first, second = group
    await job_store.record(first.job.id, first.fence, block=block_record(0))
    assert await job_store.blocks(second.job.id) == {}
    await job_store.request_cancel(second.job.id)
    assert await job_store.renew(second.job.id, second.fence, LEASE) is LeaseStatus.CANCEL
    assert await job_store.renew(first.job.id, first.fence, LEASE) is LeaseStatus.OK
    await job_store.finish(second.job.id, second.fence, state="cancelled")
    await job_store.finish(first.job.id, first.fence, state="succeeded", files={"manifest.json": "key"})
    assert await states(job_store, [jobs[1], jobs[3]]) == [JobState.SUCCEEDED, JobState.CANCELLED]


async def test_a_group_holds_its_devices_once_and_until_its_last_member_is_done(job_store: JobStore) -> None:
    jobs = await submitted(job_store, 2, 3, devices=5)
    await job_store.create("local", job_spec().model_copy(update={"devices": 3}))
    await job_store.create("local", job_spec().model_copy(update={"devices": 4}))
    eight = Capacity("ray:6380", 8)
    first = await job_store.claim("worker", LEASE, eight)
    second = await job_store.claim("worker", LEASE, eight)
    assert first is not None and second is not None and ids(first.group) == [job.id for job in jobs]
    assert second.job.spec.devices == 3
    assert sorted(holding.devices for holding in await job_store.holdings()) == [0, 3, 5]
    assert await job_store.claim("worker", LEASE, eight) is None
    await job_store.release(first.job.id, first.fence, delay_seconds=3600)
    assert await job_store.claim("worker", LEASE, eight) is None
    await job_store.release(first.others[0].job.id, first.others[0].fence, delay_seconds=3600)
    third = await job_store.claim("worker", LEASE, eight)
    assert third is not None and third.job.spec.devices == 4


async def test_a_lost_worker_is_lost_to_all_that_it_had(job_store: JobStore) -> None:
    jobs = await submitted(job_store, 2, 3, 4)
    first, second, third = await claimed(job_store, lease_seconds=0)
    await job_store.release(third.job.id, third.fence, delay_seconds=0)
    again = await claimed(job_store)
    assert ids(again) == [jobs[2].id]
    await job_store.renew(second.job.id, second.fence, LEASE)
    assert sorted(await job_store.reap()) == [jobs[0].id, jobs[1].id]
    for claim in (first, second):
        with pytest.raises(Fenced):
            await job_store.renew(claim.job.id, claim.fence, LEASE)
    assert ids(await claimed(job_store)) == [jobs[0].id, jobs[1].id]
    assert await job_store.renew(jobs[2].id, again[0].fence, LEASE) is LeaseStatus.OK


async def test_members_that_failed_together_go_on_together(job_store: JobStore) -> None:
    jobs = await submitted(job_store, 2, 3, 4)
    first, second, third = await claimed(job_store)
    await job_store.release(first.job.id, first.fence, delay_seconds=0, error=failure())
    await job_store.release(second.job.id, second.fence, delay_seconds=3600, error=failure())
    await job_store.finish(third.job.id, third.fence, state="failed", error=failure())
    assert ids(await claimed(job_store)) == [jobs[0].id, jobs[1].id]
    assert await states(job_store, jobs) == [JobState.RUNNING, JobState.RUNNING, JobState.FAILED]


@pytest.mark.parametrize("how", ["failed", "lost"])
async def test_who_has_lost_two_attempts_in_a_row_gets_the_next_alone(job_store: JobStore, how: str) -> None:
    """Another member may be to blame; who gets on, meanwhile, stays with the others."""
    jobs = await submitted(job_store, 2, 3, 4, 5)
    for attempt in range(2):
        group = await claimed(job_store, lease_seconds=0)
        assert len(group) == 4
        for claim in group[2:]:
            await job_store.record(claim.job.id, claim.fence, block=block_record(attempt))
        if how == "lost":
            await job_store.reap()
            continue
        for claim in group:
            await job_store.release(claim.job.id, claim.fence, delay_seconds=0, error=failure())
    assert [ids(await claimed(job_store)) for _ in range(3)] == [
        [jobs[0].id], [jobs[1].id], [jobs[2].id, jobs[3].id],
    ]  # fmt: skip
