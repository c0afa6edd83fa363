"""Jobs as pages: the list, one job as it runs and what it made, and what may be done to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from bitpress.advice import advice
from bitpress.artifacts import REPORT, Report, parse_report
from bitpress.errors import ArtifactError, NotFound, StoreError
from bitpress.jobs import Event, Job, JobFilter, JobState, LogEvent
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.jobstore import JobStore
from bitpress_service.routes import artifacts as artifact_routes
from bitpress_service.routes import events as event_routes
from bitpress_service.routes.dependencies import Artifacts, JobReader, Jobs
from bitpress_service.web.evidence import block_bars, block_cells, heat_tables, totals
from bitpress_service.web.linears import BlockReports, linear_plots
from bitpress_service.web.login import SessionRoute
from bitpress_service.web.rendering import render
from bitpress_service.web.steering import ACTIONS

router = APIRouter(prefix="/jobs", route_class=SessionRoute)

PAGE = 25
SCANNED_PAGES = 20  # a search for a text looks at so many pages of the list before it shows what it has
LOG_LINES = 200

# The API's own answers, for those who are logged in.
router.add_api_route("/{job_id}/events", event_routes.events, methods=["GET"])
router.add_api_route("/{job_id}/artifacts/{name:path}", artifact_routes.download, methods=["GET"])


@dataclass(frozen=True)
class Filter:
    """What a list was narrowed to."""

    state: JobState | None
    text: str
    sweep: str = ""

    @property
    def is_set(self) -> bool:
        return self.state is not None or bool(self.text or self.sweep)

    def fits(self, job: Job) -> bool:
        """Whether every word is somewhere in what the list shows of a job."""
        spec = job.spec
        shown = [
            job.id,
            spec.name or "",
            spec.model.uri,
            spec.method.model_dump_json(),
            *(f"{k}={v}" for k, v in spec.labels.items()),
        ]
        return all(word in " ".join(shown).lower() for word in self.text.lower().split())


@router.get("")
async def list_jobs(
    request: Request,
    caller: JobReader,
    jobs: Jobs,
    state: str = "",
    text: Annotated[str, Query(max_length=200)] = "",
    sweep: Annotated[str, Query(max_length=100)] = "",
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    chosen = Filter(JobState(state) if state in map(str, JobState) else None, text.strip(), sweep)
    found, next_cursor = await _find(jobs, caller.tenant, chosen, after)
    is_part = "hx-request" in request.headers
    return render(
        request,
        "jobs_table.html" if is_part else "jobs.html",
        jobs=found,
        filter=chosen,
        states=list(JobState),
        after=after,
        next_cursor=next_cursor,
    )


async def _find(jobs: JobStore, tenant: str, chosen: Filter, after: str | None) -> tuple[list[Job], str | None]:
    found: list[Job] = []
    for _ in range(SCANNED_PAGES):
        page = await jobs.list(
            tenant, limit=PAGE, cursor=after, where=JobFilter(state=chosen.state, sweep=chosen.sweep or None)
        )
        found += filter(chosen.fits, page.data)
        after = page.next_cursor
        if after is None or len(found) >= PAGE:
            break
    return found, after


@router.get("/{job_id}")
async def show(request: Request, job_id: str, caller: JobReader, jobs: Jobs, artifacts: Artifacts) -> Response:
    job = await jobs.get(job_id, caller.tenant)
    events = await jobs.events(job.id, limit=event_routes.ALL_EVENTS)
    report, unread = await _report_or_reason(jobs, artifacts, job)
    has_files = (report or unread) and "artifacts:read" in caller.scopes
    files = (await artifact_routes.list_files(job_id, caller, jobs, artifacts)).data if has_files else ()
    return render(
        request,
        "job.html",
        **await _live(jobs, job),
        **await _linears(request, jobs, job if report is None else None),
        advice=advice(job.error.code) if job.error else "",
        log=_log_tail(events),
        last_event=events[-1].id if events else "0",
        files=files,
        report=report,
        unread=unread,
        totals=totals(report) if report else None,
        heat=heat_tables(report.blocks) if report else (),
    )


@router.get("/{job_id}/live")
async def live(request: Request, job_id: str, caller: JobReader, jobs: Jobs) -> Response:
    """The part of a job's page that changes while it runs."""
    job = await jobs.get(job_id, caller.tenant)
    return render(request, "job_live.html", **await _live(jobs, job))


@router.get("/{job_id}/linears")
async def linears(request: Request, job_id: str, caller: JobReader, jobs: Jobs) -> Response:
    """The part of a job's page that changes with every published block."""
    job = await jobs.get(job_id, caller.tenant)
    return render(request, "job_linears.html", job=job, **await _linears(request, jobs, job))


@router.get("/{job_id}/report")
async def show_report(request: Request, job_id: str, caller: JobReader, jobs: Jobs, artifacts: Artifacts) -> Response:
    """All evidence on one page, fit to be printed."""
    job = await jobs.get(job_id, caller.tenant)
    report = await read_report(jobs, artifacts, job)
    if report is None:
        raise NotFound(f"job {job_id} has no report: it is {job.state}")
    return render(
        request, "report.html", job=job, report=report, totals=totals(report), heat=heat_tables(report.blocks)
    )


async def _live(jobs: JobStore, job: Job) -> dict[str, Any]:
    published = await jobs.blocks(job.id)
    total = max([job.progress.blocks_total, *(index + 1 for index in published)])
    return {
        "job": job,
        "actions": ACTIONS,
        "blocks": block_cells(published, total),
        "bars": block_bars(published, total),
    }


async def _linears(request: Request, jobs: JobStore, job: Job | None) -> dict[str, Any]:
    """Figures of the linears that are published; none for a job that has a report, which tells more."""
    reports: BlockReports = request.app.state.block_reports
    try:
        blocks = await reports.read((await jobs.blocks(job.id)).values()) if job else []
    except StoreError as error:
        return {"plots": (), "linears_problem": error.message}
    return {"plots": linear_plots(blocks), "linears_problem": ""}


def _log_tail(events: Sequence[Event]) -> list[LogEvent]:
    return [event for event in events if isinstance(event, LogEvent)][-LOG_LINES:]


async def _report_or_reason(jobs: JobStore, artifacts: ArtifactStore, job: Job) -> tuple[Report | None, str]:
    """The report, or why there is one that cannot be shown: the rest of the page does not need it."""
    try:
        return await read_report(jobs, artifacts, job), ""
    except ArtifactError as error:
        return None, error.message


async def read_report(jobs: JobStore, artifacts: ArtifactStore, job: Job) -> Report | None:
    files = await jobs.files(job.id)
    if REPORT not in files:
        return None
    return parse_report(await run_in_threadpool(artifacts.get_bytes, files[REPORT]))
