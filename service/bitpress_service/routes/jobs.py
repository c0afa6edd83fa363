"""Jobs: submit, list, look at, cancel."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel

from bitpress.jobs import Job, JobSpec, JobState
from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.dependencies import JobReader, Jobs, JobWriter

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=KeyedRoute)


class JobResource(Job):
    """A job as the API sends it: `bitpress.jobs.Job` and two members for those who read it raw."""

    object: Literal["job"] = "job"
    urls: dict[str, str]


class JobList(BaseModel):
    """One page; ask for the next with `after=next_cursor`."""

    object: Literal["list"] = "list"
    data: list[JobResource]
    has_more: bool
    next_cursor: str | None


@router.post("", status_code=202)
async def submit(
    spec: JobSpec,
    caller: JobWriter,
    jobs: Jobs,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> JobResource:
    """Queue a job. With an `Idempotency-Key`, the same request again returns the job it made the first time."""
    job, replayed = await jobs.create(caller.tenant, spec, idempotency_key=idempotency_key)
    response.headers["Location"] = _url(job)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return _resource(job)


@router.get("")
async def list_jobs(
    caller: JobReader,
    jobs: Jobs,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
    state: JobState | None = None,
) -> JobList:
    """The caller's jobs, newest first."""
    page = await jobs.list(caller.tenant, limit=limit, cursor=after, state=state)
    return JobList(
        data=[_resource(job) for job in page.data],
        has_more=page.next_cursor is not None,
        next_cursor=page.next_cursor,
    )


@router.get("/{job_id}")
async def get(job_id: str, caller: JobReader, jobs: Jobs) -> JobResource:
    return _resource(await jobs.get(job_id, caller.tenant))


@router.post("/{job_id}/cancel", responses={202: {"model": JobResource, "description": "Winding down"}})
async def cancel(job_id: str, caller: JobWriter, jobs: Jobs, response: Response) -> JobResource:
    """Cancel a job: at once when it is queued, before its next linear when it runs (202). An ended job stays so."""
    job = await jobs.request_cancel(job_id, caller.tenant)
    response.status_code = 202 if job.state is JobState.CANCELLING else 200
    return _resource(job)


def _resource(job: Job) -> JobResource:
    url = _url(job)
    urls = {"self": url} | {name: f"{url}/{name}" for name in ("events", "cancel", "artifacts", "report")}
    return JobResource(**dict(job), urls=urls)


def _url(job: Job) -> str:
    return f"/v1/jobs/{job.id}"
