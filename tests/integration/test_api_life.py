"""A job's life over HTTP: its versions, long polls, edits, pause and resume, retry, delete, filters."""

import asyncio
from typing import Any

import httpx2
import pytest
from running_api import CONTENTS, Api
from service_helpers import LEASE, failure, job_spec
from test_api_jobs import job_of, problem

from bitpress.jobs import Job, JobState
from bitpress_service.jobstore import Claim

SPEC = job_spec().model_dump(mode="json")


async def submitted(api: Api, query: str = "", **changes: Any) -> Job:
    response = await api.client.post(f"/v1/jobs{query}", json=SPEC | changes)
    assert response.headers["etag"] == f'"{response.json()["version"]}"'
    return job_of(response)


async def claimed(api: Api) -> Claim:
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    return claim


async def step(api: Api, job: Job, name: str, status: int, state: JobState, **body: Any) -> Job:
    response = await api.client.post(f"/v1/jobs/{job.id}/{name}", **({"json": body} if body else {}))
    assert (response.status_code, response.json()["state"]) == (status, state), response.text
    return job_of(response)


async def test_a_version_is_sent_once(api: Api) -> None:
    job = await submitted(api)
    first = await api.client.get(f"/v1/jobs/{job.id}")
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"no", {etag}', "*"):
        again = await api.client.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    await api.jobs.request_cancel(job.id)
    changed = await api.client.get(f"/v1/jobs/{job.id}", headers={"If-None-Match": etag})
    assert job_of(changed).state is JobState.CANCELLED and changed.headers["etag"] != etag


async def test_a_long_poll_ends_with_a_change_or_in_time(api: Api) -> None:
    job = await submitted(api)
    path, headers = f"/v1/jobs/{job.id}", {"If-None-Match": f'"{job.version}"'}
    assert (await api.client.get(f"{path}?wait=0.05", headers=headers)).status_code == 304
    assert job_of(await api.client.get(f"{path}?wait=0.05")) == job
    polls = [asyncio.create_task(api.client.get(f"{path}?wait=30", headers=given)) for given in (headers, {})]
    done, _ = await asyncio.wait(polls, timeout=0.3)
    assert not done
    await api.jobs.request_cancel(job.id)
    assert [job_of(await poll).state for poll in polls] == [JobState.CANCELLED] * 2
    # Who names an older version has something to learn at once.
    assert job_of(await api.client.get(f"{path}?wait=30", headers=headers)).state is JobState.CANCELLED
    problem(await api.client.get(f"{path}?wait=31"), 422, "invalid-request")


async def test_name_labels_and_priority_are_edited(api: Api) -> None:
    job = await submitted(api, "?priority=3", name="first")
    assert (job.priority, job.spec.name) == (3, "first")
    path = f"/v1/jobs/{job.id}"
    edited = await api.client.patch(
        path, json={"name": "second", "labels": {"team": "nlp"}}, headers={"If-Match": f'"{job.version}"'}
    )
    assert edited.headers["etag"] == f'"{job.version + 1}"'
    assert (job_of(edited).spec.name, job_of(edited).spec.labels, job_of(edited).priority) == (
        "second", {"team": "nlp"}, 3,
    )  # fmt: skip
    for stale in (f'"{job.version}"', f'W/"{job.version + 1}"', '"x"', "1"):
        response = await api.client.patch(path, json={"name": "third"}, headers={"If-Match": stale})
        problem(response, 412, "precondition-failed")
    assert job_of(await api.client.patch(path, json={"priority": -2}, headers={"If-Match": "*"})).priority == -2
    assert job_of(await api.client.patch(path, json={})).spec.name == "second"
    await claimed(api)
    problem(await api.client.patch(path, json={"priority": 9}), 409, "conflict")
    assert job_of(await api.client.patch(path, json={"name": None})).spec.name is None


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"priority": 101}, "/priority"),
        ({"priority": None}, "/priority"),
        ({"name": ""}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"labels": {"a=b": "c"}}, "/labels/a=b/[key]"),
        ({"state": "succeeded"}, "/state"),
    ],
)
async def test_an_edit_that_is_none_changes_nothing(api: Api, body: dict[str, Any], pointer: str) -> None:
    job = await submitted(api)
    answer = problem(await api.client.patch(f"/v1/jobs/{job.id}", json=body), 422, "invalid-request")
    assert [error["pointer"] for error in answer["errors"]] == [pointer]
    assert await api.jobs.get(job.id) == job


async def test_pause_resume_cancel_retry_delete(api: Api) -> None:
    job = await submitted(api)
    await step(api, job, "pause", 200, JobState.PAUSED)
    await step(api, job, "resume", 200, JobState.QUEUED)
    claim = await claimed(api)
    await step(api, job, "pause", 202, JobState.PAUSING)
    problem(await api.client.delete(f"/v1/jobs/{job.id}"), 409, "conflict")
    await api.jobs.release(job.id, claim.fence, delay_seconds=0)
    await step(api, job, "pause", 200, JobState.PAUSED)
    problem(await api.client.post(f"/v1/jobs/{job.id}/retry"), 409, "conflict")
    await step(api, job, "cancel", 200, JobState.CANCELLED)
    problem(await api.client.post(f"/v1/jobs/{job.id}/pause"), 409, "conflict")
    problem(await api.client.post(f"/v1/jobs/{job.id}/resume"), 409, "conflict")
    await step(api, job, "retry", 202, JobState.QUEUED)
    claim = await claimed(api)
    await api.jobs.finish(job.id, claim.fence, state="failed", error=failure())
    await step(api, job, "retry", 202, JobState.QUEUED, fresh=True)
    await step(api, job, "cancel", 200, JobState.CANCELLED)
    deleted = await api.client.delete(f"/v1/jobs/{job.id}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    problem(await api.client.get(f"/v1/jobs/{job.id}"), 404, "not-found")
    problem(await api.client.delete(f"/v1/jobs/{job.id}"), 404, "not-found")


async def test_a_retry_that_is_misspelt_is_refused(api: Api) -> None:
    job = await submitted(api)
    problem(await api.client.post(f"/v1/jobs/{job.id}/retry", json={"Fresh": True}), 422, "invalid-request")


async def test_deleting_a_job_removes_what_it_made_and_nothing_else(api: Api) -> None:
    job, other = await api.succeeded_job(), await api.succeeded_job()
    keys = await api.jobs.files(job.id)
    assert (await api.client.delete(f"/v1/jobs/{job.id}")).status_code == 204
    assert await api.jobs.trash() == ()
    for key in keys.values():
        with pytest.raises(Exception, match="cannot read"):
            api.artifacts.get_bytes(key)
    names = {file["name"] for file in (await api.client.get(f"/v1/jobs/{other.id}/artifacts")).json()["data"]}
    assert names == {*CONTENTS, "manifest.json"}


async def test_lists_are_filtered(api: Api) -> None:
    nlp = await submitted(api, labels={"team": "nlp"}, name="Nightly")
    asr = await submitted(api, labels={"team": "asr"})
    await api.client.post(f"/v1/jobs/{asr.id}/pause")

    async def found(**query: Any) -> list[str]:
        response: httpx2.Response = await api.client.get("/v1/jobs", params=query)
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["data"]]

    assert await found(label="team=nlp") == await found(name="NIGHT") == [nlp.id]
    assert await found(state="paused") == await found(label=["team=asr"], method="spqr") == [asr.id]
    assert await found(model="/models/some", created_after="2020-01-01T00:00:00Z") == [asr.id, nlp.id]
    assert await found(created_after="2999-01-01T00:00:00+01:00") == await found(label=["team=nlp", "team=asr"]) == []
    for bad in ({"lable": "team=nlp"}, {"label": "team"}, {"created_after": "2020-01-01T00:00:00"}, {"after": "x"}):
        problem(await api.client.get("/v1/jobs", params=bad), 422, "invalid-request")
