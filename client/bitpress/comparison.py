"""Reports side by side: by bits, with what each kept of the model, and whether they may be compared at all."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from bitpress.artifacts import Report
from bitpress.errors import Conflict
from bitpress.plots import Point, scatter

COLUMNS = (
    "job", "name", "model", "method", "dataset", "bits_per_weight", "bits_group", "bytes_after", "perplexity_dense",
    "perplexity", "perplexity_low", "perplexity_high", "increase_percent", "kl", "agreement", "accuracy_dense",
    "accuracy", "accuracy_error", "on_front",
)  # fmt: skip
EQUAL_BITS = 0.02  # jobs whose bits per weight differ by less than this share may be compared as they stand

Row = dict[str, str | int | float]


def differences(reports: Mapping[str, Report]) -> list[str]:
    """In what the jobs were not evaluated alike, in words; empty when their numbers may be compared."""
    found = []
    for what, values in {
        "the model": {job: report.spec.model.uri for job, report in reports.items()},
        "the evaluated texts": {job: ", ".join(sorted(report.perplexity)) for job, report in reports.items()},
        "the zero-shot tasks": {job: ", ".join(sorted(report.tasks)) for job, report in reports.items()},
    }.items():
        if len(set(values.values())) > 1:
            found.append(f"{what}: " + "; ".join(f"{job}: {value or 'none'}" for job, value in values.items()))
    for name in datasets(reports.values()):
        tokens = {report.perplexity[name].tokens_sha256 for report in reports.values() if name in report.perplexity}
        if len(tokens) > 1:
            found.append(f"the windows of {name}: other tokens, of another length, number or tokenizer")
    for name in _tasks(reports.values()):
        prompts = {report.tasks[name].prompts_sha256 for report in reports.values() if name in report.tasks}
        if len(prompts) > 1:
            found.append(f"the prompts of {name}: other examples, or another tokenizer")
    return found


def require_same_evaluation(reports: Mapping[str, Report]) -> None:
    """Raise Conflict, naming every difference, when the jobs were not evaluated alike."""
    if found := differences(reports):
        raise Conflict("the jobs were not evaluated alike: " + "; ".join(found))


def compare(reports: Mapping[str, Report]) -> list[Row]:
    """A row for each dataset, or zero-shot task, and job, by rising bits; what a row has no figure for is "".

    on_front: no job has fewer bits and is better, by perplexity or accuracy. Jobs of one bits_group store equal bits,
    up to EQUAL_BITS. Jobs without evaluation have no row.
    """
    groups = {job: number for number, group in enumerate(equal_groups(reports), 1) for job in group}
    rows: list[Row] = []
    for name in (*datasets(reports.values()), *_tasks(reports.values())):
        best = float("inf")
        for job, group in groups.items():
            report = reports[job]
            if figures := _quality(report, name) or _accuracy(report, name):
                loss, values = figures
                row = _job(job, report, name, group) | values | {"on_front": "yes" if loss < best else "no"}
                rows.append({column: row.get(column, "") for column in COLUMNS})
                best = min(best, loss)
    return rows


def equal_groups(reports: Mapping[str, Report]) -> list[list[str]]:
    """All jobs by rising bits, those together that need no more than the first of their group, up to EQUAL_BITS."""
    groups: list[list[str]] = []
    least = 0.0
    for job, report in sorted(reports.items(), key=lambda item: item[1].bits_per_weight):
        if groups and report.bits_per_weight <= least * (1 + EQUAL_BITS):
            groups[-1].append(job)
        else:
            groups.append([job])
            least = report.bits_per_weight
    return groups


def pareto(rows: Sequence[Row], dataset: str) -> str:
    """Perplexity on a dataset against bits per weight, as SVG, with the front of jobs that nothing beats."""
    points = {str(row["job"]): _point(row) for row in rows if row["dataset"] == dataset}
    front = [points[str(row["job"])] for row in rows if row["dataset"] == dataset and row["on_front"] == "yes"]
    what = f"Perplexity on {PurePath(dataset).name} against bits per weight"
    return scatter(list(points.values()), "bits per weight", what, front)


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with a head, as RFC 4180 has it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def datasets(reports: Iterable[Report]) -> list[str]:
    """All evaluated datasets, each once."""
    return list(dict.fromkeys(name for report in reports for name in report.perplexity))


def name_of(report: Report) -> str:
    """What people call the job, else its method with the bits of its codes."""
    bits = getattr(report.spec.method, "bits", None)
    return report.spec.name or (report.spec.method.kind if bits is None else f"{report.spec.method.kind} {bits}")


def _point(row: Row) -> Point:
    bits, value, name = float(row["bits_per_weight"]), float(row["perplexity"]), str(row["name"])
    interval = (float(row["perplexity_low"] or value), float(row["perplexity_high"] or value))
    return Point(bits, value, interval, name, f"{name}, {row['job']}: {bits:.3f} bits, perplexity {value:.3f}")


def _job(job: str, report: Report, dataset: str, group: int) -> Row:
    return {
        "job": job,
        "name": name_of(report),
        "model": report.spec.model.uri,
        "method": report.spec.method.kind,
        "dataset": dataset,
        "bits_per_weight": report.bits_per_weight,
        "bits_group": group,
        "bytes_after": report.bytes_after,
    }


def _quality(report: Report, dataset: str) -> tuple[float, Row] | None:
    """A loss to rank by, and the figures."""
    if dataset not in report.perplexity:
        return None
    quality, divergence = report.perplexity[dataset], report.divergence[dataset]
    interval = quality.compressed_interval
    return quality.compressed, {
        "perplexity_dense": quality.dense,
        "perplexity": quality.compressed,
        "perplexity_low": interval.low if interval else "",
        "perplexity_high": interval.high if interval else "",
        "increase_percent": quality.increase_percent,
        "kl": divergence.kl,
        "agreement": divergence.agreement,
    }


def _accuracy(report: Report, task: str) -> tuple[float, Row] | None:
    if task not in report.tasks:
        return None
    found = report.tasks[task]
    return -found.compressed.value, {
        "accuracy_dense": found.dense.value,
        "accuracy": found.compressed.value,
        "accuracy_error": found.compressed.standard_error,
    }


def _tasks(reports: Iterable[Report]) -> list[str]:
    return list(dict.fromkeys(name for report in reports for name in report.tasks))
