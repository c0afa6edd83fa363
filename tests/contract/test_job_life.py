"""Pause, resume, retry, edit, delete and lists with filters, as every job store promises them."""

import asyncio

import pytest
from service_helpers import LEASE, block_record, failure, job_spec

from bitpress.errors import Conflict, NotFound, PreconditionFailed
from bitpress.jobs import Job, JobEdit, JobFilter, JobState, StateEvent
from bitpress_service.artifactstore import job_prefix
from bitpress_service.jobstore import Claim, JobStore, LeaseStatus

FILES = {"manifest.json": "t/local/manifest.json"}


async def created(store: JobStore, **labels: str) -> Job:
    return (await store.create("local", job_spec(**labels)))[0]


async def running(store: JobStore) -> Claim:
    await created(store)
    return await claimed(store)


async def claimed(store: JobStore) -> Claim:
    claim = await store.claim("worker", LEASE)
    assert claim is not None
    return claim


async def states(store: JobStore, job: Job) -> list[JobState]:
    return [event.state for event in await store.events(job.id) if isinstance(event, StateEvent)]


async def test_a_paused_job_waits_until_it_is_resumed(job_store: JobStore) -> None:
    job = await created(job_store)
    for _ in range(2):
        assert (await job_store.pause(job.id, "local")).state is JobState.PAUSED
    assert await job_store.claim("worker", LEASE) is None
    for _ in range(2):
        resumed = await job_store.resume(job.id, "local")
        assert resumed.state is JobState.QUEUED
    assert list(resumed.entered_at) == [JobState.QUEUED, JobState.PAUSED]
    assert resumed.entered_at[JobState.QUEUED] >= resumed.entered_at[JobState.PAUSED] >= resumed.created_at
    assert (await claimed(job_store)).job.id == job.id
    assert await states(job_store, job) == ["queued", "paused", "queued", "running"]


async def test_a_retried_job_serves_what_the_attempt_before_left_until_the_new_one_ends(job_store: JobStore) -> None:
    """A result that misses its gate is kept; see the page on evidence among the decisions."""
    claim = await running(job_store)
    missed = failure().model_copy(update={"code": "gate-failed"})
    await job_store.finish(claim.job.id, claim.fence, state="failed", error=missed, files=FILES)
    await job_store.retry(claim.job.id, "local", fresh=True)
    assert await job_store.files(claim.job.id) == FILES
    again = await claimed(job_store)
    assert await job_store.files(claim.job.id) == FILES
    newer = {"manifest.json": "t/local/newer.json"}
    await job_store.finish(again.job.id, again.fence, state="succeeded", files=newer)
    assert await job_store.files(claim.job.id) == newer


async def test_a_pause_reaches_the_worker_and_costs_no_failure(job_store: JobStore) -> None:
    claim = await running(job_store)
    await job_store.record(claim.job.id, claim.fence, block=block_record(0))
    pausing = await job_store.pause(claim.job.id, "local")
    assert pausing.state is JobState.PAUSING and not pausing.cancel_requested
    assert await job_store.renew(claim.job.id, claim.fence, LEASE) is LeaseStatus.PAUSE
    assert await job_store.record(claim.job.id, claim.fence, log="winding down") is LeaseStatus.PAUSE
    for _ in range(2):
        paused = await job_store.release(claim.job.id, claim.fence, delay_seconds=0)
        assert (paused.state, paused.failures) == (JobState.PAUSED, 0)
    assert await job_store.claim("worker", LEASE) is None and await job_store.reap() == ()
    await job_store.resume(claim.job.id, "local")
    again = await claimed(job_store)
    assert again.job.attempt == 2 and set(await job_store.blocks(again.job.id)) == {0}
    assert await job_store.renew(again.job.id, again.fence, LEASE) is LeaseStatus.OK


async def test_a_pause_that_is_taken_back_lets_the_job_go_on(job_store: JobStore) -> None:
    claim = await running(job_store)
    await job_store.pause(claim.job.id, "local")
    assert (await job_store.resume(claim.job.id, "local")).state is JobState.RUNNING
    assert await job_store.renew(claim.job.id, claim.fence, LEASE) is LeaseStatus.OK
    assert (await job_store.release(claim.job.id, claim.fence, delay_seconds=0)).state is JobState.QUEUED


async def test_a_worker_that_is_lost_while_it_pauses_leaves_a_paused_job(job_store: JobStore) -> None:
    job = await created(job_store)
    claim = await job_store.claim("worker", 0)
    assert claim is not None
    await job_store.pause(job.id, "local")
    assert await job_store.reap(max_stalled_attempts=1) == (job.id,)
    paused = await job_store.get(job.id)
    assert paused.state is JobState.PAUSED and paused.error is not None and paused.error.code == "worker-lost"


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
async def test_a_job_that_ends_before_it_noticed_the_pause_has_ended(job_store: JobStore, outcome: str) -> None:
    claim = await running(job_store)
    await job_store.pause(claim.job.id, "local")
    if outcome == "succeeded":
        ended = await job_store.finish(claim.job.id, claim.fence, state="succeeded", files=FILES)
    else:
        ended = await job_store.finish(claim.job.id, claim.fence, state="failed", error=failure())
    assert ended.state == outcome
    for step in (job_store.pause, job_store.resume):
        with pytest.raises(Conflict, match=outcome):
            await step(ended.id, "local")


async def test_a_cancel_outweighs_a_pause(job_store: JobStore) -> None:
    claim = await running(job_store)
    await job_store.pause(claim.job.id, "local")
    assert (await job_store.request_cancel(claim.job.id)).state is JobState.CANCELLING
    with pytest.raises(Conflict):
        await job_store.pause(claim.job.id, "local")
    ended = await job_store.release(claim.job.id, claim.fence, delay_seconds=0)
    assert ended.state is JobState.CANCELLED and ended.cancel_requested
    paused = await created(job_store)
    await job_store.pause(paused.id, "local")
    assert (await job_store.request_cancel(paused.id)).state is JobState.CANCELLED


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_retry_keeps_the_published_blocks_unless_it_is_fresh(job_store: JobStore, fresh: bool) -> None:
    claim = await running(job_store)
    await job_store.record(claim.job.id, claim.fence, block=block_record(0))
    await job_store.finish(claim.job.id, claim.fence, state="failed", error=failure())
    for _ in range(2):
        job = await job_store.retry(claim.job.id, "local", fresh=fresh)
        assert (job.state, job.failures, job.error, job.finished_at) == (JobState.QUEUED, 0, None, None)
    assert set(await job_store.blocks(job.id)) == (set() if fresh else {0})
    again = await claimed(job_store)
    assert again.job.attempt == 2
    await job_store.request_cancel(job.id)
    await job_store.finish(job.id, again.fence, state="cancelled")
    retried = await job_store.retry(job.id, "local")
    assert retried.state is JobState.QUEUED and not retried.cancel_requested
    third = await claimed(job_store)
    ended = await job_store.finish(job.id, third.fence, state="succeeded", files=FILES)
    with pytest.raises(Conflict, match="succeeded"):
        await job_store.retry(ended.id, "local")


async def test_a_job_in_any_other_state_is_not_retried(job_store: JobStore) -> None:
    claim = await running(job_store)
    with pytest.raises(Conflict, match="running"):
        await job_store.retry(claim.job.id, "local")
    waiting = await created(job_store)
    await job_store.pause(waiting.id, "local")
    with pytest.raises(Conflict, match="paused"):
        await job_store.retry(waiting.id, "local")


async def test_name_and_labels_are_changed_at_any_time_priority_while_it_counts(job_store: JobStore) -> None:
    first, second = await created(job_store, team="nlp"), await created(job_store)
    edited = await job_store.edit(second.id, "local", JobEdit(name="Nightly", labels={"team": "asr"}, priority=5))
    assert (edited.spec.name, edited.spec.labels, edited.priority) == ("Nightly", {"team": "asr"}, 5)
    assert edited.version > second.version and edited == await job_store.get(second.id)
    claim = await claimed(job_store)
    assert claim.job == edited.model_copy(
        update={name: getattr(claim.job, name) for name in ("state", "attempt", "version", "started_at", "entered_at")}
    )
    named = await job_store.edit(second.id, "local", JobEdit(name=None))
    assert named.spec.name is None and named.spec.labels == {"team": "asr"}
    with pytest.raises(Conflict, match="running"):
        await job_store.edit(second.id, "local", JobEdit(priority=1))
    assert (await job_store.edit(second.id, "local", JobEdit(priority=5))).priority == 5
    await job_store.pause(first.id, "local")
    await job_store.edit(first.id, "local", JobEdit(priority=-1))
    third = await created(job_store)
    await job_store.resume(first.id, "local")
    assert [(await claimed(job_store)).job.id for _ in range(2)] == [third.id, first.id]


async def test_an_edit_of_another_version_is_refused(job_store: JobStore) -> None:
    job = await created(job_store)
    edited = await job_store.edit(job.id, "local", JobEdit(name="one"), job.version)
    assert await job_store.edit(job.id, "local", JobEdit(name="one"), job.version) == edited  # said twice
    with pytest.raises(PreconditionFailed):
        await job_store.edit(job.id, "local", JobEdit(name="two"), job.version)
    edits = [JobEdit(labels={str(n): "x"}) for n in range(5)]
    replies = await asyncio.gather(
        *(job_store.edit(job.id, "local", edit, edited.version) for edit in edits), return_exceptions=True
    )
    assert sum(isinstance(reply, Job) for reply in replies) == 1
    names = [JobEdit(name=f"name {n}") for n in range(5)]
    await asyncio.gather(*(job_store.edit(job.id, "local", edit) for edit in names))
    assert (await job_store.get(job.id)).version == edited.version + 6


async def test_a_deleted_job_leaves_only_its_objects_in_the_trash(job_store: JobStore) -> None:
    claim = await running(job_store)
    with pytest.raises(Conflict, match="cancel it first"):
        await job_store.delete(claim.job.id, "local")
    await job_store.finish(claim.job.id, claim.fence, state="succeeded", files=FILES)
    for _ in range(2):  # the second time as if the reply was lost
        await job_store.delete(claim.job.id, "local")
    with pytest.raises(NotFound):
        await job_store.get(claim.job.id)
    assert await job_store.events(claim.job.id) == () and await job_store.blocks(claim.job.id) == {}
    for where in (JobFilter(), JobFilter(state=JobState.SUCCEEDED)):
        assert (await job_store.list("local", limit=10, where=where)).data == ()
    prefix = job_prefix("local", claim.job.id)
    assert await job_store.trash() == (prefix,)
    await job_store.emptied(prefix)
    assert await job_store.trash() == ()
    with pytest.raises(NotFound):
        await job_store.delete(claim.job.id, "local")


async def test_an_idempotency_key_of_a_deleted_job_makes_a_new_one(job_store: JobStore) -> None:
    job, _ = await job_store.create("local", job_spec(), idempotency_key="key")
    await job_store.request_cancel(job.id)
    await job_store.delete(job.id, "local")
    again, replayed = await job_store.create("local", job_spec(), idempotency_key="key")
    assert again.id != job.id and not replayed


async def test_another_tenants_job_is_out_of_reach(job_store: JobStore) -> None:
    job = await created(job_store)
    for step in (job_store.pause, job_store.resume, job_store.retry, job_store.delete):
        with pytest.raises(NotFound):
            await step(job.id, "other")
    with pytest.raises(NotFound):
        await job_store.edit(job.id, "other", JobEdit(name="mine"))
    assert await job_store.get(job.id) == job


async def test_who_waits_for_a_change_is_told(job_store: JobStore) -> None:
    job = await created(job_store)
    await job_store.changed(job.id, job.version, 0.01)
    waiting = asyncio.create_task(job_store.changed(job.id, job.version, 3600))
    await job_store.edit(job.id, "local", JobEdit(name="new"))
    await waiting
    await job_store.changed("job_unknown", 1, 3600)


async def test_lists_hold_what_fits_all_that_is_asked(job_store: JobStore) -> None:
    first = await created(job_store, team="nlp", stage="a=b")
    second = await created(job_store, team='nlp"]')
    third = await created(job_store, team="asr")
    await job_store.edit(third.id, "local", JobEdit(name="Nächtlicher Lauf [%d]"))
    await job_store.pause(second.id, "local")

    async def found(**where: object) -> list[str]:
        page = await job_store.list("local", limit=10, where=JobFilter.model_validate(where))
        assert page.next_cursor is None
        return [job.id for job in page.data]

    assert await found(label=["team=nlp"]) == [first.id]
    assert await found(label=['team=nlp"]']) == [second.id]
    assert await found(label=["team=nlp", "stage=a=b"]) == [first.id]
    assert await found(label=["team=nlp", "stage=b"]) == []
    assert await found(name="NÄCHTLICHER") == await found(name="[%d]") == [third.id]
    assert await found(method="spqr") == await found(model="/models/some") == [third.id, second.id, first.id]
    assert await found(method="rtn") == await found(model="/models") == []
    assert await found(state="paused", label=['team=nlp"]']) == [second.id]
    assert await found(created_after=second.created_at) == [
        job.id for job in (third, second, first) if job.created_at > second.created_at
    ]


async def test_a_filtered_list_goes_on_behind_what_was_looked_at(job_store: JobStore) -> None:
    wanted = [await created(job_store, n="yes") for _ in range(3)]
    for _ in range(2500):
        await job_store.create("local", job_spec())
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = await job_store.list("local", limit=2, cursor=cursor, where=JobFilter(label=("n=yes",)))
        seen += [job.id for job in page.data]
        cursor, pages = page.next_cursor, pages + 1
    assert seen == [job.id for job in reversed(wanted)] and pages > 2


@pytest.mark.parametrize("cursor", ["job", "\N{BULLET}", "====", "/w=="])
async def test_a_cursor_that_is_none_is_refused(job_store: JobStore, cursor: str) -> None:
    with pytest.raises(ValueError):
        await job_store.list("local", limit=1, cursor=cursor)
