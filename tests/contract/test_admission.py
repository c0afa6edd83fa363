"""Who gets devices: jobs are claimed as they fit, told why they wait, and not overtaken for ever."""

import pytest
from service_helpers import LEASE, job_spec

from bitpress.cluster import Devices, DispatcherReport, Node, QueueLevel
from bitpress.jobs import Job
from bitpress_service.jobstore import Capacity, Claim, JobStore

EIGHT = Capacity("ray:6380", 8)


async def submitted(store: JobStore, devices: int | None, priority: int = 0) -> Job:
    spec = job_spec().model_copy(update={"devices": devices})
    return (await store.create("local", spec, priority=priority))[0]


async def claim(store: JobStore, capacity: Capacity | None = EIGHT, patience: float = 3600) -> Claim | None:
    return await store.claim("worker", LEASE, capacity, patience)


async def detail(store: JobStore, job: Job) -> str | None:
    return (await store.get(job.id)).status_detail


async def test_jobs_share_a_cluster_as_far_as_its_devices_go(job_store: JobStore) -> None:
    small, large, other = [await submitted(job_store, devices) for devices in (3, 6, 5)]
    first = await claim(job_store)
    assert first is not None and first.job.id == small.id
    second = await claim(job_store)
    assert second is not None and second.job.id == other.id
    assert await detail(job_store, large) == "waiting for 6 devices: 5 of 8 are free"
    assert await claim(job_store) is None
    assert await detail(job_store, large) == "waiting for 6 devices: 0 of 8 are free"
    told = await job_store.get(large.id)
    assert await claim(job_store) is None
    assert await job_store.get(large.id) == told  # nothing new, no new version
    elsewhere = await claim(job_store, Capacity("another", 6))
    assert elsewhere is not None and elsewhere.job.id == large.id and elsewhere.job.status_detail is None


@pytest.mark.parametrize("how", ["released", "cancelled", "lost"])
async def test_devices_are_free_when_their_job_is_done_with_them(job_store: JobStore, how: str) -> None:
    await submitted(job_store, None)
    first = await job_store.claim("worker", 0 if how == "lost" else LEASE, EIGHT)
    assert first is not None
    waiting = await submitted(job_store, 1, priority=1)
    assert await claim(job_store) is None
    assert await detail(job_store, waiting) == "waiting for 1 device: 0 of 8 are free"
    match how:
        case "released":
            await job_store.release(first.job.id, first.fence, delay_seconds=0)
        case "cancelled":
            await job_store.request_cancel(first.job.id)
            await job_store.finish(first.job.id, first.fence, state="cancelled")
        case "lost":
            await job_store.reap()
    second = await claim(job_store)
    assert second is not None and second.job.id == waiting.id
    # Who wants all devices waits for the last of them.
    assert await claim(job_store) is None


async def test_a_job_that_was_passed_over_long_enough_is_next(job_store: JobStore) -> None:
    await submitted(job_store, 4)
    assert await claim(job_store)
    large, small = await submitted(job_store, 8), await submitted(job_store, 1)
    assert await claim(job_store, patience=0) is None
    overtaking = await claim(job_store)
    assert overtaking is not None and overtaking.job.id == small.id
    ahead = await submitted(job_store, 1, priority=5)
    before = await claim(job_store, patience=0)  # a higher priority is no overtaking
    assert before is not None and before.job.id == ahead.id
    assert "waiting for 8 devices" in str(await detail(job_store, large))


async def test_a_job_for_more_devices_than_there_are_holds_nobody_up(job_store: JobStore) -> None:
    giant, small = await submitted(job_store, 9, priority=9), await submitted(job_store, 1)
    found = await claim(job_store, patience=0)
    assert found is not None and found.job.id == small.id
    assert await detail(job_store, giant) == "waiting for 9 devices: the cluster has 8"
    grown = await claim(job_store, Capacity(EIGHT.cluster, 10))
    assert grown is not None and grown.job.id == giant.id


async def test_without_a_cluster_everybody_waits(job_store: JobStore) -> None:
    job, everything = await submitted(job_store, 1), await submitted(job_store, None)
    assert await claim(job_store, Capacity("gone", 0), patience=0) is None
    for each in (job, everything):
        assert await detail(job_store, each) == "waiting for 1 device: the cluster has 0"


async def test_dispatchers_are_known_while_they_report(job_store: JobStore) -> None:
    devices = Devices(kind="cuda", total=8, free=5, nodes=(Node(host="a", devices=8),))
    report = DispatcherReport(owner="host:1", cluster="ray:6380", busy=True, devices=devices)
    await job_store.report(report, 60)
    await job_store.report(report.model_copy(update={"owner": "host:2"}), 0.001)
    for priority in (0, 3, 3, -100, 100):
        await submitted(job_store, 1, priority)
    assert await claim(job_store, None)
    while len((found := await job_store.cluster()).dispatchers) > 1:
        pass
    assert found.dispatchers[0].model_dump(exclude={"seen_at"}) == report.model_dump()
    assert found.queue == tuple(QueueLevel(priority=p, jobs=n) for p, n in ((3, 2), (0, 1), (-100, 1)))
    assert (found.running, found.delayed) == (1, 0)
