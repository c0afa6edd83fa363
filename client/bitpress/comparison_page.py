"""Jobs side by side as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath

from bitpress.artifacts import Report
from bitpress.comparison import EQUAL_BITS, Row, compare, datasets, differences, pareto
from bitpress.pages import note, page, section, table

HEAD = ["job", "name", "bits", "equal bits", "perplexity", "increase", "KL", "same top token", "front"]
TASK_HEAD = ["job", "name", "bits", "equal bits", "dense", "accuracy", "front"]


def to_html(reports: Mapping[str, Report]) -> str:
    """The comparison, by rising bits, with a figure for each text. What was not evaluated alike is said first."""
    rows = compare(reports)
    parts = [_differences(found)] if (found := differences(reports)) else []
    parts += [_dataset(rows, name) for name in datasets(reports.values())]
    parts += [_task(rows, name) for name in dict.fromkeys(str(row["dataset"]) for row in rows if row["accuracy"] != "")]
    if not rows:
        parts.append(section("Nothing to compare", "<p>None of these jobs was evaluated.</p>"))
    return page(f"{len(reports)} jobs compared", parts)


def _differences(found: Sequence[str]) -> str:
    lines = "".join(f"<p>{escape(difference)}</p>" for difference in found)
    return f'<section><h2 class="bad">Not evaluated alike</h2>{lines}</section>'


def _dataset(rows: Sequence[Row], dataset: str) -> str:
    of_dataset = [row for row in rows if row["dataset"] == dataset]
    dense = sorted({f"{row['perplexity_dense']:.3f}" for row in of_dataset})
    remark = (
        f"Dense: {', '.join(dense)}. Jobs with one number under equal bits store the same to {EQUAL_BITS:.0%}. "
        "The line is the front: no job is smaller and better."
    )
    content = note(remark) + pareto(rows, dataset) + table(HEAD, [_cells(row) for row in of_dataset])
    return section(PurePath(dataset).name, content)


def _cells(row: Row) -> list[str]:
    interval = f"\n{row['perplexity_low']:.3f} to {row['perplexity_high']:.3f}" if row["perplexity_low"] else ""
    return [
        *_job(row),
        f"{row['perplexity']:.3f}{interval}",
        f"{row['increase_percent']:+.2f} %",
        f"{row['kl']:.5f}",
        f"{row['agreement']:.2%}",
        str(row["on_front"]),
    ]


def _task(rows: Sequence[Row], task: str) -> str:
    lines = [
        [
            *_job(row),
            f"{row['accuracy_dense']:.4f}",
            f"{row['accuracy']:.4f}\n± {row['accuracy_error']:.4f}",
            str(row["on_front"]),
        ]
        for row in rows
        if row["dataset"] == task
    ]
    return section(task, note("Zero-shot accuracy, with its standard error.") + table(TASK_HEAD, lines))


def _job(row: Row) -> list[str]:
    return [str(row["job"]), str(row["name"]), f"{row['bits_per_weight']:.3f}", str(row["bits_group"])]
