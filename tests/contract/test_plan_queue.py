"""Plans that are asked for and answered: a small queue with a reply."""

import asyncio

from service_helpers import job_spec

from bitpress.errors import OutOfMemory
from bitpress.plans import DevicesLike, PlanAnswer, PlanRequest
from bitpress_service.jobstore import JobStore

KEEP = 60.0
REQUEST = PlanRequest.of(job_spec())
OTHER = PlanRequest.of(job_spec(), DevicesLike(kind="cuda", count=2, memory_gib=80))
REFUSED = PlanAnswer.refusal(OutOfMemory("does not fit"))


async def test_plans_are_claimed_in_order_and_the_answer_reaches_who_asked(job_store: JobStore) -> None:
    ids = [await job_store.ask_plan(request, KEEP) for request in (REQUEST, OTHER)]
    assert len(set(ids)) == 2
    first, second = await job_store.claim_plan(), await job_store.claim_plan()
    assert first is not None and second is not None
    assert ([first.id, second.id], first.request, second.request) == (ids, REQUEST, OTHER)
    assert await job_store.claim_plan() is None
    await job_store.answer_plan(second.id, REFUSED)
    assert await job_store.plan_answer(ids[0], wait_seconds=0.3) is None
    assert await job_store.plan_answer(ids[1], wait_seconds=0) == REFUSED


async def test_who_asks_waits_for_the_answer(job_store: JobStore) -> None:
    plan_id = await job_store.ask_plan(REQUEST, KEEP)
    waiting = asyncio.create_task(job_store.plan_answer(plan_id, wait_seconds=30))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await job_store.answer_plan(plan_id, REFUSED)
    assert await waiting == REFUSED


async def test_the_same_request_joins_the_plan_that_is_being_made(job_store: JobStore) -> None:
    plan_id = await job_store.ask_plan(REQUEST, KEEP)
    assert await job_store.claim_plan() is not None
    assert await job_store.ask_plan(REQUEST, KEEP) == plan_id
    assert await job_store.claim_plan() is None


async def test_a_plan_nobody_waits_for_any_more_is_not_made(job_store: JobStore) -> None:
    plan_id = await job_store.ask_plan(REQUEST, keep_seconds=0.1)
    last = await job_store.ask_plan(OTHER, KEEP)
    await asyncio.sleep(0.2)
    claimed = await job_store.claim_plan()
    assert claimed is not None and claimed.id == last
    await job_store.answer_plan(plan_id, REFUSED)
    assert await job_store.plan_answer(plan_id, wait_seconds=0) is None
    assert await job_store.ask_plan(REQUEST, KEEP) == plan_id  # asked for again, it is made anew
    again = await job_store.claim_plan()
    assert again is not None and again.id == plan_id
