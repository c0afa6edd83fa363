"""What every job store promises, checked on real servers."""

import asyncio
from collections.abc import Sequence

import pytest
from service_helpers import LEASE, block_record, failure, job_spec

from bitpress.errors import Conflict, NotFound
from bitpress.jobs import BlockEvent, Event, JobFilter, JobState, LogEvent, Progress, ProgressEvent, StateEvent
from bitpress_service.jobstore import Claim, Fenced, JobStore, LeaseStatus

FILES = {"manifest.json": "t/local/manifest.json"}


async def running(store: JobStore, lease_seconds: float = LEASE) -> Claim:
    await store.create("local", job_spec())
    return await claimed(store, lease_seconds)


async def claimed(store: JobStore, lease_seconds: float = LEASE) -> Claim:
    claim = await store.claim("worker", lease_seconds)
    assert claim is not None
    return claim


async def lost(store: JobStore, max_stalled_attempts: int = 3) -> Claim:
    """The next job, claimed under a lease that has run out already and been reaped."""
    claim = await claimed(store, lease_seconds=0)
    assert await store.reap(max_stalled_attempts) == (claim.job.id,)
    return claim


def states(events: Sequence[Event]) -> list[JobState]:
    return [event.state for event in events if isinstance(event, StateEvent)]


async def test_a_job_from_creation_to_its_artifact(job_store: JobStore) -> None:
    job, replayed = await job_store.create("local", job_spec(team="nlp"))
    assert not replayed
    assert job.state is JobState.QUEUED and job.spec.labels == {"team": "nlp"} and job.started_at is None

    claim = await claimed(job_store)
    assert (claim.job.id, claim.job.state, claim.job.attempt) == (job.id, JobState.RUNNING, 1)
    assert await job_store.renew(job.id, claim.fence, LEASE) is LeaseStatus.OK
    progress = Progress(phase="calibrating", blocks_done=1, blocks_total=2, linear="fc1", fraction=0.4)
    await job_store.record(job.id, claim.fence, progress=progress, block=block_record(0), status_detail="block 0")
    shown = await job_store.get(job.id)
    assert (shown.progress, shown.status_detail) == (progress, "block 0")
    await job_store.record(job.id, claim.fence, log="it goes on", status_detail="")
    assert (await job_store.get(job.id)).status_detail is None
    assert await job_store.files(job.id) == {}

    ended = await job_store.finish(job.id, claim.fence, state="succeeded", files=FILES)
    assert ended == await job_store.get(job.id)
    assert ended.state is JobState.SUCCEEDED and ended.error is None
    assert ended.created_at <= ended.started_at <= ended.finished_at  # type: ignore[operator]
    assert ended.version > shown.version > claim.job.version > job.version
    assert await job_store.files(job.id) == FILES
    assert await job_store.blocks(job.id) == {0: block_record(0)}
    assert await job_store.claim("worker", LEASE) is None


async def test_events_tell_the_whole_story_and_resume_exactly(job_store: JobStore) -> None:
    claim = await running(job_store)
    progress = Progress(blocks_done=1, blocks_total=2, fraction=0.5)
    await job_store.record(claim.job.id, claim.fence, progress=progress, block=block_record(1), log="bloc \N{BULLET} 1")
    await job_store.finish(claim.job.id, claim.fence, state="failed", error=failure())

    events = await job_store.events(claim.job.id)
    assert [event.type for event in events] == ["state", "state", "progress", "block", "log", "state"]
    assert isinstance(events[2], ProgressEvent) and events[2].progress == progress
    assert isinstance(events[3], BlockEvent) and events[3].sha256 == block_record(1).sha256
    assert isinstance(events[4], LogEvent) and events[4].message == "bloc \N{BULLET} 1"
    assert isinstance(events[5], StateEvent) and events[5].error == failure()
    for index, event in enumerate(events):
        assert await job_store.events(claim.job.id, after=event.id) == events[index + 1 :]
    assert await job_store.events(claim.job.id, after=events[0].id, limit=2) == events[1:3]


async def test_the_new_events_of_several_jobs_are_waited_for_at_once(job_store: JobStore) -> None:
    jobs = [(await job_store.create("local", job_spec()))[0] for _ in range(3)]
    seen = {job.id: (await job_store.events(job.id))[-1].id for job in jobs}
    assert await job_store.new_events(seen, wait_seconds=0.01) == {}
    reader = asyncio.create_task(job_store.new_events(seen, wait_seconds=3600))
    await job_store.request_cancel(jobs[1].id)
    found = await reader
    assert list(found) == [jobs[1].id] and states(found[jobs[1].id]) == [JobState.CANCELLED]
    from_the_start = await job_store.new_events(dict.fromkeys(seen, "0"), wait_seconds=3600)
    assert {job_id: len(events) for job_id, events in from_the_start.items()} == dict(zip(seen, (1, 2, 1), strict=True))


async def test_an_idempotency_key_makes_one_job_however_many_ask_at_once(job_store: JobStore) -> None:
    replies = await asyncio.gather(
        *(job_store.create("local", job_spec(), idempotency_key=f"key {n % 3}") for n in range(60))
    )
    assert len({job.id for job, _ in replies}) == 3
    assert sum(not replayed for _, replayed in replies) == 3
    assert len((await job_store.list("local", limit=100)).data) == 3


async def test_an_idempotency_key_belongs_to_one_body_and_one_tenant(job_store: JobStore) -> None:
    first, _ = await job_store.create("local", job_spec(bits=3), idempotency_key="key")
    with pytest.raises(Conflict):
        await job_store.create("local", job_spec(bits=4), idempotency_key="key")
    with pytest.raises(Conflict):
        await job_store.create("local", job_spec(bits=3), idempotency_key="key", priority=1)
    other, replayed = await job_store.create("other", job_spec(bits=4), idempotency_key="key")
    assert other.id != first.id and not replayed


async def test_another_tenants_job_does_not_exist(job_store: JobStore) -> None:
    job, _ = await job_store.create("local", job_spec())
    for call in (job_store.get, job_store.request_cancel):
        with pytest.raises(NotFound):
            await call(job.id, "other")
        with pytest.raises(NotFound):
            await call("job_unknown", "local")
    assert (await job_store.list("other", limit=10)).data == ()
    assert (await job_store.get(job.id, "local")).state is JobState.QUEUED


async def test_lists_are_newest_first_in_pages_by_state(job_store: JobStore) -> None:
    ids = [(await job_store.create("local", job_spec()))[0].id for _ in range(7)]
    await job_store.request_cancel(ids[3])
    await claimed(job_store)

    seen, cursor = [], None
    while True:
        page = await job_store.list("local", limit=3, cursor=cursor)
        seen += [job.id for job in page.data]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == ids[::-1]
    for state, expected in ((JobState.CANCELLED, [ids[3]]), (JobState.RUNNING, [ids[0]]), (JobState.FAILED, [])):
        where = JobFilter(state=state)
        assert [job.id for job in (await job_store.list("local", limit=10, where=where)).data] == expected
    assert len((await job_store.list("local", limit=4, where=JobFilter(state=JobState.QUEUED))).data) == 4


async def test_higher_priority_then_older_comes_first(job_store: JobStore) -> None:
    priorities = (0, 5, -1, 5, 0)
    ids = [(await job_store.create("local", job_spec(), priority=p))[0].id for p in priorities]
    order = [(await claimed(job_store)).job.id for _ in ids]
    assert order == [ids[1], ids[3], ids[0], ids[4], ids[2]]


async def test_many_claimers_share_the_queue_without_a_job_twice(job_store: JobStore) -> None:
    for _ in range(20):
        await job_store.create("local", job_spec())
    claims = await asyncio.gather(*(job_store.claim(f"worker {n}", LEASE) for n in range(40)))
    jobs = [claim.job.id for claim in claims if claim]
    assert len(jobs) == len(set(jobs)) == 20


async def test_a_lost_lease_shuts_its_worker_out_of_every_write(job_store: JobStore) -> None:
    await job_store.create("local", job_spec())
    zombie = await lost(job_store)
    heir = await claimed(job_store)
    assert heir.job.id == zombie.job.id and heir.fence > zombie.fence and heir.job.attempt == 2
    before = await job_store.events(heir.job.id)

    for write in (
        job_store.renew(zombie.job.id, zombie.fence, LEASE),
        job_store.record(zombie.job.id, zombie.fence, log="still here", block=block_record(7)),
        job_store.finish(zombie.job.id, zombie.fence, state="succeeded", files=FILES),
        job_store.finish(zombie.job.id, zombie.fence, state="failed", error=failure()),
        job_store.release(zombie.job.id, zombie.fence, delay_seconds=0),
    ):
        with pytest.raises(Fenced):
            await write
    assert await job_store.events(heir.job.id) == before
    assert await job_store.blocks(heir.job.id) == {} and await job_store.files(heir.job.id) == {}
    assert await job_store.get(heir.job.id) == heir.job
    assert await job_store.renew(heir.job.id, heir.fence, LEASE) is LeaseStatus.OK


async def test_a_zombie_is_shut_out_before_anybody_takes_over(job_store: JobStore) -> None:
    await job_store.create("local", job_spec())
    zombie = await lost(job_store)
    with pytest.raises(Fenced):
        await job_store.record(zombie.job.id, zombie.fence, log="still here")


async def test_a_renewed_lease_is_not_reaped(job_store: JobStore) -> None:
    claim = await running(job_store, lease_seconds=0)
    await job_store.renew(claim.job.id, claim.fence, LEASE)
    assert await job_store.reap() == ()


async def test_attempts_lost_in_a_row_without_a_block_fail_the_job(job_store: JobStore) -> None:
    job, _ = await job_store.create("local", job_spec())
    await lost(job_store)
    await lost(job_store)
    claim = await claimed(job_store, lease_seconds=0)
    await job_store.record(job.id, claim.fence, block=block_record(0))
    assert await job_store.reap() == (job.id,)
    await lost(job_store)
    await lost(job_store)
    assert (await job_store.get(job.id)).state is JobState.QUEUED
    await lost(job_store)
    ended = await job_store.get(job.id)
    assert ended.state is JobState.FAILED and ended.attempt == 6 and ended.failures == 0
    assert ended.error is not None and (ended.error.code, ended.error.attempt) == ("worker-lost", 6)
    assert await job_store.reap() == () and await job_store.claim("worker", LEASE) is None


async def test_a_released_job_waits_its_delay_and_is_charged_only_for_an_error(job_store: JobStore) -> None:
    claim = await running(job_store)
    drained = await job_store.release(claim.job.id, claim.fence, delay_seconds=0)
    assert (drained.state, drained.failures, drained.error) == (JobState.QUEUED, 0, None)

    claim = await claimed(job_store)
    failed = await job_store.release(claim.job.id, claim.fence, delay_seconds=3600, error=failure(2))
    assert (failed.state, failed.failures, failed.error) == (JobState.QUEUED, 1, failure(2))
    assert await job_store.claim("worker", LEASE) is None

    later, _ = await job_store.create("local", job_spec())
    assert (await claimed(job_store)).job.id == later.id
    assert (await job_store.request_cancel(failed.id)).state is JobState.CANCELLED


async def test_a_new_block_forgets_the_failures_before_it_and_an_old_one_does_not(job_store: JobStore) -> None:
    claim = await running(job_store)
    await job_store.record(claim.job.id, claim.fence, block=block_record(0))
    for _ in range(2):
        await job_store.release(claim.job.id, claim.fence, delay_seconds=0, error=failure())
        claim = await claimed(job_store)
    await job_store.record(claim.job.id, claim.fence, block=block_record(0), log="taken over")
    assert (await job_store.get(claim.job.id)).failures == 2
    await job_store.record(claim.job.id, claim.fence, block=block_record(1))
    assert (await job_store.get(claim.job.id)).failures == 0


async def test_a_short_delay_passes(job_store: JobStore) -> None:
    claim = await running(job_store)
    await job_store.release(claim.job.id, claim.fence, delay_seconds=0.001)
    await asyncio.sleep(0.01)
    assert (await claimed(job_store)).job.id == claim.job.id


async def test_many_drained_attempts_are_not_lost_ones(job_store: JobStore) -> None:
    claim = await running(job_store)
    for _ in range(5):
        await job_store.release(claim.job.id, claim.fence, delay_seconds=0)
        claim = await claimed(job_store, lease_seconds=0)
    await job_store.reap()
    assert (await job_store.get(claim.job.id)).state is JobState.QUEUED


async def test_cancel_of_a_running_job_reaches_its_worker_by_any_write(job_store: JobStore) -> None:
    claim = await running(job_store)
    flagged = await job_store.request_cancel(claim.job.id, "local")
    assert flagged.state is JobState.CANCELLING and flagged.cancel_requested
    assert await job_store.request_cancel(claim.job.id) == flagged
    assert await job_store.renew(claim.job.id, claim.fence, LEASE) is LeaseStatus.CANCEL
    assert await job_store.record(claim.job.id, claim.fence, log="winding down") is LeaseStatus.CANCEL
    ended = await job_store.finish(claim.job.id, claim.fence, state="cancelled")
    assert ended.state is JobState.CANCELLED and ended.error is None
    assert await job_store.request_cancel(claim.job.id) == ended


@pytest.mark.parametrize("how", ["succeeded", "failed", "released", "reaped"])
async def test_a_cancel_that_came_first_wins(job_store: JobStore, how: str) -> None:
    claim = await running(job_store, lease_seconds=0 if how == "reaped" else LEASE)
    await job_store.request_cancel(claim.job.id)
    match how:
        case "succeeded":
            await job_store.finish(claim.job.id, claim.fence, state="succeeded", files=FILES)
        case "failed":
            await job_store.finish(claim.job.id, claim.fence, state="failed", error=failure())
        case "released":
            await job_store.release(claim.job.id, claim.fence, delay_seconds=0, error=failure())
        case "reaped":
            await job_store.reap()
    ended = await job_store.get(claim.job.id)
    assert ended.state is JobState.CANCELLED and ended.finished_at is not None
    assert await job_store.files(claim.job.id) == {}
    assert await job_store.claim("worker", LEASE) is None


async def test_cancel_and_finish_at_once_agree_on_one_end(job_store: JobStore) -> None:
    for _ in range(20):
        claim = await running(job_store)
        ended, cancelled = await asyncio.gather(
            job_store.finish(claim.job.id, claim.fence, state="succeeded", files=FILES),
            job_store.request_cancel(claim.job.id),
        )
        final = await job_store.get(claim.job.id)
        assert ended == final and cancelled.state in (final.state, JobState.CANCELLING)
        ends = [state for state in states(await job_store.events(final.id)) if state.terminal]
        assert ends == [final.state]
        assert bool(await job_store.files(final.id)) == (final.state is JobState.SUCCEEDED)


async def test_cancelled_is_no_outcome_unless_somebody_asked(job_store: JobStore) -> None:
    claim = await running(job_store)
    with pytest.raises(Conflict):
        await job_store.finish(claim.job.id, claim.fence, state="cancelled")
    assert (await job_store.get(claim.job.id)).state is JobState.RUNNING


async def test_what_is_said_twice_because_a_reply_was_lost_counts_once(job_store: JobStore) -> None:
    claim = await running(job_store)
    for _ in range(2):
        await job_store.record(claim.job.id, claim.fence, block=block_record(0))
    released = [await job_store.release(claim.job.id, claim.fence, delay_seconds=0, error=failure()) for _ in range(2)]
    assert released[0] == released[1] and released[0].failures == 1

    claim = await claimed(job_store)
    ended = [await job_store.finish(claim.job.id, claim.fence, state="succeeded", files=FILES) for _ in range(2)]
    assert ended[0] == ended[1]
    types = [event.type for event in await job_store.events(claim.job.id)]
    assert types == ["state", "state", "block", "state", "state", "state"]
    with pytest.raises(Fenced):
        await job_store.record(claim.job.id, claim.fence, log="after the end")


async def test_a_failed_job_may_keep_its_artifact(job_store: JobStore) -> None:
    claim = await running(job_store)
    ended = await job_store.finish(claim.job.id, claim.fence, state="failed", files=FILES, error=failure())
    assert ended.state is JobState.FAILED
    assert await job_store.files(claim.job.id) == FILES


@pytest.mark.parametrize(
    "arguments",
    [
        {"state": "failed"},
        {"state": "succeeded"},
        {"state": "succeeded", "files": FILES, "error": failure()},
        {"state": "cancelled", "files": FILES},
    ],
)
async def test_an_end_that_contradicts_itself_is_refused(job_store: JobStore, arguments: dict[str, object]) -> None:
    claim = await running(job_store)
    with pytest.raises(ValueError, match="an error goes with"):
        await job_store.finish(claim.job.id, claim.fence, **arguments)  # type: ignore[arg-type]
