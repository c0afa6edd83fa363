"""The event stream: live, resumable to the event, ending with the job or the service."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import pytest
import redis.asyncio
from pydantic import TypeAdapter
from running_api import Api
from service_helpers import LEASE, block_record, job_spec

from bitpress.jobs import BlockEvent, Event, JobState, LogEvent, StateEvent
from bitpress_service.event_feed import BACKLOG, EventFeed
from bitpress_service.routes import events as events_route

EVENT: TypeAdapter[Event] = TypeAdapter(Event)


async def read(response: httpx2.Response) -> AsyncIterator[Event]:
    """Events of a stream, read by the rules of the format."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            event = EVENT.validate_json(fields["data"])
            assert (event.id, event.type) == (fields["id"], fields["event"])
            yield event
            fields = {}


async def finished_job(api: Api) -> tuple[str, list[Event]]:
    await api.jobs.create("local", job_spec())
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    for index in range(3):
        await api.jobs.record(claim.job.id, claim.fence, block=block_record(index), log=f"block {index}\nis done")
    await api.jobs.finish(claim.job.id, claim.fence, state="succeeded", files={"manifest.json": "key"})
    return claim.job.id, list(await api.jobs.events(claim.job.id))


async def stream(api: Api, job_id: str, **headers: str) -> list[Event]:
    async with api.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in read(response)]


async def test_the_stream_of_an_ended_job_is_whole_and_ends(api: Api) -> None:
    job_id, expected = await finished_job(api)
    assert len(expected) == 9
    assert await stream(api, job_id) == expected
    assert next(e.message for e in expected if isinstance(e, LogEvent)) == "block 0\nis done"


async def test_a_stream_goes_on_exactly_behind_the_last_event_seen(api: Api) -> None:
    job_id, expected = await finished_job(api)
    for index, event in enumerate(expected):
        assert await stream(api, job_id, **{"Last-Event-ID": event.id}) == expected[index + 1 :]
    async with api.client.stream("GET", f"/v1/jobs/{job_id}/events", params={"after": expected[3].id}) as response:
        assert [event async for event in read(response)] == expected[4:]


async def test_events_arrive_while_the_job_runs(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with api.client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = read(response)
        created = await anext(events)
        assert isinstance(created, StateEvent) and created.state is JobState.QUEUED
        claim = await api.jobs.claim("worker", LEASE)
        assert claim is not None
        assert isinstance(await anext(events), StateEvent)
        await api.jobs.record(job.id, claim.fence, block=block_record(0))
        block = await anext(events)
        assert isinstance(block, BlockEvent) and block.sha256 == block_record(0).sha256
        await api.jobs.request_cancel(job.id)
        await api.jobs.finish(job.id, claim.fence, state="cancelled")
        rest = [event.state async for event in events if isinstance(event, StateEvent)]
        assert rest == [JobState.CANCELLING, JobState.CANCELLED]


async def test_the_events_so_far_as_one_page(api: Api) -> None:
    job_id, expected = await finished_job(api)
    headers = {"Accept": "application/json"}
    page = (await api.client.get(f"/v1/jobs/{job_id}/events", headers=headers)).json()
    assert page == {"object": "list", "data": [json.loads(event.model_dump_json()) for event in expected]}
    later = await api.client.get(f"/v1/jobs/{job_id}/events", params={"after": expected[-2].id}, headers=headers)
    assert [event["id"] for event in later.json()["data"]] == [expected[-1].id]


@pytest.mark.parametrize("after", ["x", "1-2-3", "99999999999999999999", "-1"])
async def test_what_is_no_event_id_is_refused(api: Api, after: str) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    assert (await api.client.get(f"/v1/jobs/{job.id}/events", params={"after": after})).status_code == 422
    assert (await api.client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": after})).status_code == 422


async def test_open_streams_end_when_the_service_stops(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    async with api.client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = read(response)
        await anext(events)
        api.app.state.feed.close()
        assert [event async for event in events] == []


async def test_a_key_has_only_so_many_streams_open(api: Api) -> None:
    feed = api.app.state.feed = EventFeed(api.jobs, max_streams=2)
    job, _ = await api.jobs.create("local", job_spec())
    path = f"/v1/jobs/{job.id}/events"
    async with api.client.stream("GET", path) as first, api.client.stream("GET", path):
        assert first.status_code == 200
        refused = await api.client.get(path)
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-streams")
        # A page is no stream, and another's streams are not counted.
        assert (await api.client.get(path, headers={"Accept": "application/json"})).status_code == 200
        other, _ = await api.jobs.create("other", job_spec())
        async with api.client.stream("GET", f"/v1/jobs/{other.id}/events", headers=await api.as_tenant("other")) as its:
            assert its.status_code == 200
    while feed.num_streams:  # the server learns a little later that they are closed
        await asyncio.sleep(0.01)
    async with api.client.stream("GET", path) as again:
        assert again.status_code == 200


async def test_who_reads_too_slowly_is_dropped_and_resumes_without_a_gap(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    async with api.client.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        events = read(response)
        seen = [await anext(events)]
        # More than all buffers between the two hold; this task reads nothing meanwhile.
        for number in range(3 * BACKLOG):
            await api.jobs.record(job.id, claim.fence, log=f"{number} " + "x" * 10_000)
        await api.jobs.request_cancel(job.id)
        await api.jobs.finish(job.id, claim.fence, state="cancelled")
        seen += [event async for event in events]
    expected = list(await api.jobs.events(job.id, limit=20_000))
    assert BACKLOG < len(seen) < len(expected)
    assert seen + await stream(api, job.id, **{"Last-Event-ID": seen[-1].id}) == expected


async def test_who_asks_for_what_is_still_to_be_is_let_go_when_the_job_has_ended(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_route, "KEEPALIVE_SECONDS", 0.05)
    job, _ = await api.jobs.create("local", job_spec())
    url = f"/v1/jobs/{job.id}/events"
    async with api.client.stream("GET", url, params={"after": "9999999999999999999"}) as response:
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith(":")  # kept alive
        await api.jobs.request_cancel(job.id)
        assert {line async for line in lines} <= {"", ": ping"}


async def test_all_streams_of_a_process_wait_on_one_connection_to_redis(api: Api) -> None:
    jobs = [(await api.jobs.create("local", job_spec()))[0] for _ in range(4)]
    readers = [asyncio.create_task(stream(api, job.id)) for job in jobs for _ in range(10)]
    while api.app.state.feed.num_streams < len(readers):
        await asyncio.sleep(0.01)
    assert sum(client["cmd"] == "xread" for client in await connections(api)) == 1
    for job in jobs:
        await api.jobs.request_cancel(job.id)
    assert {len(events) for events in await asyncio.gather(*readers)} == {2}


async def connections(api: Api) -> list[dict[str, str]]:
    async with redis.asyncio.Redis.from_url(api.app.state.settings.redis_url) as client:
        return list(await client.client_list())


async def test_many_readers_see_the_same(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    readers = [asyncio.create_task(stream(api, job.id)) for _ in range(10)]
    await api.jobs.request_cancel(job.id)
    expected = list(await api.jobs.events(job.id))
    assert await asyncio.gather(*readers) == [expected] * 10
