"""Reports side by side."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from bitpress.artifacts import REPORT, Report, parse_report
from bitpress.comparison import Row, compare, datasets, differences, pareto, require_same_evaluation, to_csv
from bitpress.comparison_page import to_html
from bitpress.errors import NotFound
from bitpress.plots import standalone
from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.artifacts import files_of
from bitpress_service.routes.dependencies import Artifacts, JobReader, Jobs, accepts

router = APIRouter(prefix="/v1/reports", tags=["artifacts"], route_class=KeyedRoute)

MOST = 64
Form = Literal["json", "csv", "svg", "html"]
MEDIA_TYPES: dict[Form, str] = {
    "json": "application/json", "csv": "text/csv", "svg": "image/svg+xml", "html": "text/html",
}  # fmt: skip


class ComparedReports(BaseModel):
    """A row for each evaluated text and job, by rising bits. differences: in what the jobs were not evaluated alike."""

    object: Literal["comparison"] = "comparison"
    data: list[Row]
    differences: list[str]


@router.get(
    "/compare",
    response_model=ComparedReports,
    responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values() if kind != "application/json"}}},
)
async def compare_reports(
    request: Request,
    caller: JobReader,
    jobs: Jobs,
    artifacts: Artifacts,
    job: Annotated[list[str], Query(min_length=1, max_length=MOST, description="a job's id, once for each job")],
    anyway: Annotated[bool, Query(description="also when they were not evaluated alike")] = False,
    form: Annotated[Form | None, Query(alias="format", description="null: what `Accept` asks for, else json")] = None,
    dataset: Annotated[str | None, Query(description="the text of a figure; null: the first")] = None,
) -> Response:
    """Jobs side by side by the bits they store, with the front of those that nothing beats.

    As JSON, CSV, a figure or a page of its own. Refused with 409 when the jobs were not evaluated alike.
    """
    reports: dict[str, Report] = {}
    for job_id in dict.fromkeys(job):
        keys = await files_of(jobs, job_id, caller.tenant)
        reports[job_id] = parse_report(await run_in_threadpool(artifacts.get_bytes, keys[REPORT]))
    if not anyway:
        require_same_evaluation(reports)
    asked = form or _accepted(request)
    content = WRITERS[asked](reports, dataset)
    headers = {"Vary": "Accept", "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(content, media_type=f"{MEDIA_TYPES[asked]}; charset=utf-8", headers=headers)


def _accepted(request: Request) -> Form:
    for form, kind in MEDIA_TYPES.items():
        if accepts(request, kind):
            return form
    return "json"


def _json(reports: Mapping[str, Report], _: str | None) -> str:
    return ComparedReports(data=compare(reports), differences=differences(reports)).model_dump_json()


def _figure(reports: Mapping[str, Report], dataset: str | None) -> str:
    known = datasets(reports.values())
    chosen = dataset or next(iter(known), None)
    if chosen is None or chosen not in known:
        raise NotFound(f"no job was evaluated on {dataset!r}; texts: {', '.join(known) or 'none'}")
    return standalone(pareto(compare(reports), chosen))


WRITERS: Mapping[Form, Callable[[Mapping[str, Report], str | None], str]] = {
    "json": _json,
    "csv": lambda reports, _: to_csv(compare(reports)),
    "svg": _figure,
    "html": lambda reports, _: to_html(reports),
}
