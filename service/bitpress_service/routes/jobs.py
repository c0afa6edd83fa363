"""Jobs: submit, also by the sweep, list, look at, edit, and steer through their life."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Header, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from bitpress.jobs import Job, JobEdit, JobFilter, JobSpec, JobState, Priority
from bitpress.sweeps import Submission
from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.dependencies import AllowedSources, Artifacts, JobReader, Jobs, JobWriter, ServiceSettings
from bitpress_service.trash import empty_trash

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=KeyedRoute)

MAX_WAIT_SECONDS = 30.0  # well below the time-outs of clients and proxies


class JobResource(Job):
    """A job as the API sends it: `bitpress.jobs.Job` and two members for those who read it raw."""

    object: Literal["job"] = "job"
    urls: dict[str, str]


class SweepResource(BaseModel):
    """A sweep as it was submitted: its id, by which its members are listed, and these in the order of their methods."""

    object: Literal["sweep"] = "sweep"
    id: str
    data: list[JobResource]


class JobList(BaseModel):
    """One page; ask for the next with `after=next_cursor`. One with a cursor may be short, even empty."""

    object: Literal["list"] = "list"
    data: list[JobResource]
    has_more: bool
    next_cursor: str | None


class JobQuery(JobFilter):
    """Which jobs, and which page of them."""

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=100, description="`next_cursor` of the page before")

    @property
    def where(self) -> JobFilter:
        return JobFilter.model_validate(self.model_dump(exclude={"limit", "after"}))


class Retry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fresh: bool = Field(False, description="compute all blocks anew, the published ones too")


ETAG = {"ETag": {"description": "the job's version", "schema": {"type": "string"}}}
WINDING_DOWN = {"model": JobResource, "description": "Its worker still has to learn of it"}


@router.post("", status_code=202)
async def submit(
    asked: Annotated[Submission, Body()],
    caller: JobWriter,
    jobs: Jobs,
    settings: ServiceSettings,
    sources: AllowedSources,
    response: Response,
    priority: Annotated[Priority, Query()] = 0,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> JobResource | SweepResource:
    """Queue a job, or all jobs of a sweep, whose `method` is a list. With an `Idempotency-Key`, the same request
    again returns what it made the first time."""
    sources.check(asked)
    key, most = idempotency_key, settings.waiting_jobs_per_tenant
    answer: JobResource | SweepResource
    if isinstance(asked, JobSpec):
        job, replayed = await jobs.create(
            caller.tenant, asked, idempotency_key=key, priority=priority, max_waiting=most
        )
        answer, url = _answer(job, response), _url(job)
    else:
        members, replayed = await jobs.create_sweep(
            caller.tenant, asked, idempotency_key=key, priority=priority, max_waiting=most
        )
        sweep = str(members[0].sweep)
        answer, url = SweepResource(id=sweep, data=[_resource(job) for job in members]), f"/v1/jobs?sweep={sweep}"
    response.headers["Location"] = url
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return answer


@router.get("")
async def list_jobs(caller: JobReader, jobs: Jobs, query: Annotated[JobQuery, Query()]) -> JobList:
    """The caller's jobs, newest first."""
    try:
        page = await jobs.list(caller.tenant, limit=query.limit, cursor=query.after, where=query.where)
    except ValueError:
        raise HTTPException(422, "after: expected the next_cursor of a page before") from None
    return JobList(
        data=[_resource(job) for job in page.data],
        has_more=page.next_cursor is not None,
        next_cursor=page.next_cursor,
    )


@router.get(
    "/{job_id}",
    response_model=JobResource,
    responses={200: {"headers": ETAG}, 304: {"description": "It is the version you have", "headers": ETAG}},
)
async def get(
    job_id: str,
    caller: JobReader,
    jobs: Jobs,
    response: Response,
    wait: Annotated[
        float, Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for another version than If-None-Match")
    ] = 0.0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> JobResource | Response:
    """One job; with `wait`, as soon as it has changed."""
    job = await jobs.get(job_id, caller.tenant)
    known = if_none_match is None or _names(if_none_match, job)
    if wait and known:
        await jobs.changed(job_id, job.version, wait)
        job = await jobs.get(job_id, caller.tenant)
    if if_none_match is not None and _names(if_none_match, job):
        return Response(status_code=304, headers={"ETag": _etag(job)})
    return _answer(job, response)


@router.patch("/{job_id}", responses={200: {"headers": ETAG}})
async def edit(
    job_id: str,
    change: JobEdit,
    caller: JobWriter,
    jobs: Jobs,
    response: Response,
    if_match: Annotated[str | None, Header()] = None,
) -> JobResource:
    """Change name, labels or priority; with `If-Match`, of no other version than that one."""
    expected = None if if_match in (None, "*") else _version(if_match or "")
    return _answer(await jobs.edit(job_id, caller.tenant, change, expected), response)


@router.delete("/{job_id}", status_code=204)
async def delete(job_id: str, caller: JobWriter, jobs: Jobs, artifacts: Artifacts) -> None:
    """Forget a job that has ended, and remove all that it made."""
    await jobs.delete(job_id, caller.tenant)
    await empty_trash(jobs, artifacts)


@router.post("/{job_id}/cancel", responses={202: WINDING_DOWN})
async def cancel(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> JobResource:
    """Cancel a job: at once when it waits, before its next linear when it runs (202). An ended job stays so."""
    return _answer(await jobs.request_cancel(job_id, caller.tenant), response, JobState.CANCELLING)


@router.post("/{job_id}/pause", responses={202: WINDING_DOWN})
async def pause(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> JobResource:
    """Pause a job: at once when it is queued, before its next linear when it runs (202). Its blocks are kept."""
    return _answer(await jobs.pause(job_id, caller.tenant), response, JobState.PAUSING)


@router.post("/{job_id}/resume")
async def resume(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> JobResource:
    """Queue a paused job again; it goes on behind its last published block."""
    return _answer(await jobs.resume(job_id, caller.tenant), response)


@router.post("/{job_id}/retry", status_code=202)
async def retry(
    job_id: str,
    caller: JobWriter,
    jobs: Jobs,
    settings: ServiceSettings,
    response: Response,
    how: Retry | None = None,
) -> JobResource:
    """Queue a job that failed or was cancelled again; it goes on behind its last published block, or starts over."""
    fresh = how is not None and how.fresh
    most = settings.waiting_jobs_per_tenant
    return _answer(await jobs.retry(job_id, caller.tenant, fresh=fresh, max_waiting=most), response)


def _answer(job: Job, response: Response, still: JobState | None = None) -> JobResource:
    """The job with its ETag; 202 while it is in the state `still`."""
    response.headers["ETag"] = _etag(job)
    if job.state is still:
        response.status_code = 202
    return _resource(job)


def _resource(job: Job) -> JobResource:
    url = _url(job)
    steps = ("events", "cancel", "pause", "resume", "retry", "artifacts", "report")
    return JobResource(**dict(job), urls={"self": url} | {name: f"{url}/{name}" for name in steps})


def _url(job: Job) -> str:
    return f"/v1/jobs/{job.id}"


def _etag(job: Job) -> str:
    return f'"{job.version}"'


def _names(header: str, job: Job) -> bool:
    """Whether an If-None-Match names the job's version (RFC 9110, 13.1.2)."""
    return header.strip() == "*" or _etag(job) in re.findall(r'"[^"]*"', header)


def _version(if_match: str) -> int:
    """The version that an If-Match names; one that no job has when it names none."""
    match = re.fullmatch(r'"(\d{1,15})"', if_match.strip())
    return int(match[1]) if match else -1
