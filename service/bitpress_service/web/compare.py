"""Jobs side by side: what each kept of the model's quality, and for how many bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from bitpress.artifacts import Report
from bitpress.jobs import Job, JobFilter, JobState
from bitpress_service.routes.dependencies import Artifacts, JobReader, Jobs
from bitpress_service.web.evidence import Totals, totals
from bitpress_service.web.jobs import read_report
from bitpress_service.web.login import SessionRoute
from bitpress_service.web.rendering import render
from bitpress_service.web.scatter import Scatter, scatter

router = APIRouter(prefix="/compare", route_class=SessionRoute)

MOST = 12
OFFERED = 50
EQUAL_BITS = 0.02  # jobs whose bits per weight differ by less than this share may be compared as they stand


@dataclass(frozen=True)
class Entry:
    """One job of a comparison; `letter` names it in figures."""

    letter: str
    job: Job
    report: Report
    totals: Totals


@router.get("")
async def compare(
    request: Request,
    caller: JobReader,
    jobs: Jobs,
    artifacts: Artifacts,
    job: Annotated[tuple[str, ...], Query(max_length=MOST)] = (),
) -> Response:
    """The jobs that are named, by rising bits; without any, those that could be."""
    if not job:
        page = await jobs.list(caller.tenant, limit=OFFERED, where=JobFilter(state=JobState.SUCCEEDED))
        return render(request, "compare_pick.html", jobs=page.data, most=MOST)
    found = [await jobs.get(job_id, caller.tenant) for job_id in dict.fromkeys(job)]
    reports = [(each, report) for each in found if (report := await read_report(jobs, artifacts, each))]
    reports.sort(key=lambda pair: pair[1].bits_per_weight)
    entries = [
        Entry(chr(ord("A") + place), each, report, totals(report)) for place, (each, report) in enumerate(reports)
    ]
    return render(
        request,
        "compare.html",
        entries=entries,
        without=[each for each in found if all(each is not entry.job for entry in entries)],
        datasets=_datasets(entries),
        models=sorted({entry.job.spec.model.uri for entry in entries}),
        equal=_equal_groups(entries),
        scatters=[_scatter(entries, name) for name in _datasets(entries)],
    )


def _datasets(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.report.perplexity))


def _equal_groups(entries: Sequence[Entry]) -> list[str]:
    """Letters of neighbours that need no more bits than the first of their group, up to EQUAL_BITS."""
    groups: list[list[Entry]] = []
    for entry in entries:
        if groups and entry.report.bits_per_weight <= groups[-1][0].report.bits_per_weight * (1 + EQUAL_BITS):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return [", ".join(entry.letter for entry in group) for group in groups if len(group) > 1]


def _scatter(entries: Sequence[Entry], dataset: str) -> Scatter:
    points = [
        (entry.letter, entry.report.bits_per_weight, entry.report.perplexity[dataset].compressed)
        for entry in entries
        if dataset in entry.report.perplexity
    ]
    dense = sorted({entry.report.perplexity[dataset].dense for entry in entries if dataset in entry.report.perplexity})
    return scatter(dataset, points, dense)
