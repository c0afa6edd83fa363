"""Jobs side by side: what each kept of the model's quality, and for how many bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from bitpress.artifacts import Report
from bitpress.comparison import compare as compare_reports
from bitpress.comparison import differences, equal_groups
from bitpress.jobs import Job, JobFilter, JobState
from bitpress.plots import Point, scatter
from bitpress_service.routes.dependencies import Artifacts, JobReader, Jobs
from bitpress_service.web.evidence import Totals, totals
from bitpress_service.web.jobs import read_report
from bitpress_service.web.login import SessionRoute
from bitpress_service.web.rendering import number, render

router = APIRouter(prefix="/compare", route_class=SessionRoute)

MOST = 12
OFFERED = 50


@dataclass(frozen=True)
class Entry:
    """One job of a comparison; `letter` names it in figures. on_front: texts on which nothing beats it."""

    letter: str
    job: Job
    report: Report
    totals: Totals
    on_front: frozenset[str]


@dataclass(frozen=True)
class Plot:
    """Perplexity on a text against bits. `svg` is markup of our own making; `dense`: of the models as they came."""

    dataset: str
    svg: str
    dense: tuple[float, ...]


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
    lettered = {chr(ord("A") + place): pair for place, pair in enumerate(reports)}
    by_letter = {letter: report for letter, (_, report) in lettered.items()}
    fronts = {(row["job"], row["dataset"]) for row in compare_reports(by_letter) if row["on_front"] == "yes"}
    entries = [
        Entry(
            letter,
            each,
            report,
            totals(report),
            frozenset(name for name in report.perplexity if (letter, name) in fronts),
        )
        for letter, (each, report) in lettered.items()
    ]
    return render(
        request,
        "compare.html",
        entries=entries,
        without=[each for each in found if all(each is not entry.job for entry in entries)],
        datasets=_datasets(entries),
        differences=differences(by_letter),
        tasks=list(dict.fromkeys(name for entry in entries for name in entry.report.tasks)),
        equal=[", ".join(letters) for letters in equal_groups(by_letter) if len(letters) > 1],
        plots=[_plot(entries, name) for name in _datasets(entries)],
    )


def _datasets(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.report.perplexity))


def _plot(entries: Sequence[Entry], dataset: str) -> Plot:
    points, front, dense = [], [], set()
    for entry in entries:
        if quality := entry.report.perplexity.get(dataset):
            bits, value, interval = entry.report.bits_per_weight, quality.compressed, quality.compressed_interval
            title = f"{entry.letter}: {number(bits, 4)} bits, perplexity {number(value, 5)}"
            ends = (interval.low, interval.high) if interval else (value, value)
            points.append(Point(bits, value, ends, entry.letter, title))
            dense.add(quality.dense)
            if dataset in entry.on_front:
                front.append(points[-1])
    what = "Perplexity against bits per weight: " + "; ".join(point.title for point in points)
    return Plot(dataset, scatter(points, "bits per weight", what, front), tuple(sorted(dense)))
