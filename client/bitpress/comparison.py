"""Reports side by side: by bits, with what each kept of the model, and whether they may be compared at all."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from bitpress.artifacts import Report
from bitpress.errors import Conflict

COLUMNS = (
    "job", "model", "method", "dataset", "bits_per_weight", "bytes_after", "perplexity_dense", "perplexity",
    "perplexity_low", "perplexity_high", "increase_percent", "kl", "agreement", "on_front",
)  # fmt: skip

Row = dict[str, str | float]


def differences(reports: Mapping[str, Report]) -> list[str]:
    """In what the jobs were not evaluated alike, in words; empty when their numbers may be compared."""
    found = []
    for what, values in {
        "the model": {job: report.spec.model.uri for job, report in reports.items()},
        "the evaluated texts": {job: ", ".join(sorted(report.perplexity)) for job, report in reports.items()},
    }.items():
        if len(set(values.values())) > 1:
            found.append(f"{what}: " + "; ".join(f"{job}: {value or 'none'}" for job, value in values.items()))
    for name in datasets(reports.values()):
        tokens = {report.perplexity[name].tokens_sha256 for report in reports.values() if name in report.perplexity}
        if len(tokens) > 1:
            found.append(f"the windows of {name}: other tokens, of another length, number or tokenizer")
    return found


def require_same_evaluation(reports: Mapping[str, Report]) -> None:
    """Raise Conflict, naming every difference, when the jobs were not evaluated alike."""
    if found := differences(reports):
        raise Conflict("the jobs were not evaluated alike: " + "; ".join(found))


def compare(reports: Mapping[str, Report]) -> list[Row]:
    """A row for each dataset and job, by rising bits; on_front: no job has fewer bits and a lower perplexity.

    Jobs without evaluation have no row.
    """
    by_bits = sorted(reports.items(), key=lambda item: item[1].bits_per_weight)
    rows: list[Row] = []
    for name in datasets(reports.values()):
        best = float("inf")
        for job, report in by_bits:
            if name in report.perplexity:
                rows.append(_row(job, report, name, report.perplexity[name].compressed < best))
                best = min(best, report.perplexity[name].compressed)
    return rows


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


def _row(job: str, report: Report, dataset: str, on_front: bool) -> Row:
    quality, divergence = report.perplexity[dataset], report.divergence[dataset]
    interval = quality.compressed_interval
    values = (
        job, report.spec.model.uri, report.spec.method.kind, dataset, report.bits_per_weight, report.bytes_after,
        quality.dense, quality.compressed, interval.low if interval else "", interval.high if interval else "",
        quality.increase_percent, divergence.kl, divergence.agreement, "yes" if on_front else "no",
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))
