"""Commands on what a job made: report, pull; and the methods a service offers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from bitpress.artifacts import ArtifactFile, Report
from bitpress.cli.app import RESULTS, JobId, JobIds, Json, app
from bitpress.cli.follow import detach
from bitpress.cli.ids import whole_id, whole_ids
from bitpress.cli.output import plain_table, print_json, print_table, say, size
from bitpress.client import Client
from bitpress.comparison import compare, differences, require_same_evaluation, to_csv
from bitpress.comparison_page import to_html
from bitpress.config import find_service
from bitpress.errors import NotFound
from bitpress.methods import MethodConfig, PTQ161Config
from bitpress.progress import duration


@app.command(rich_help_panel=RESULTS)
def report(
    job_ids: JobIds,
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole report of one job as Markdown.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one job's report as a page of its own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show reports, several side by side; with --json the report itself, or for several an object by id."""
    if (markdown or html) and (as_json or len(job_ids) > 1 or (markdown and html)):
        raise typer.BadParameter("--markdown and --html are for the report of one job, without --json")
    with Client() as client:
        if html:
            html.write_text(client.report_html(whole_id(client, job_ids[0])), encoding="utf-8")
            say(f"{html}: open it in a browser; it needs nothing else")
            return
        if markdown:
            typer.echo(client.report_markdown(whole_id(client, job_ids[0])))
            return
        reports = _reports(client, job_ids)
    if as_json:
        data = {job_id: entry.model_dump(mode="json") for job_id, entry in reports.items()}
        print_json(data if len(data) > 1 else next(iter(data.values())))
        return
    columns = [summary(entry) for entry in reports.values()]
    table = plain_table("job", *reports)
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    print_table(table)


@app.command("compare", rich_help_panel=RESULTS)
def compare_jobs(
    job_ids: JobIds,
    as_csv: Annotated[bool, typer.Option("--csv", help="Every figure, as CSV.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of its own, with a figure for each text.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also when they were not evaluated alike.")] = False,
    as_json: Json = False,
) -> None:
    """Put jobs side by side by the bits they store; refused when they were not evaluated alike."""
    with Client() as client:
        reports = _reports(client, job_ids)
    if anyway:
        for difference in differences(reports):
            say(f"not alike: {difference}")
    else:
        require_same_evaluation(reports)
    rows = compare(reports)
    if html:
        html.write_text(to_html(reports), encoding="utf-8")
        say(f"{html}: open it in a browser; it needs nothing else")
        return
    if as_json:
        print_json(rows)
        return
    if as_csv:
        typer.echo(to_csv(rows), nl=False)
        return
    head = ("text", "job", "name", "bits", "perplexity", "increase", "KL", "same top token", "accuracy", "front")
    table = plain_table(*head)
    forms = {
        "perplexity": "{:.3f}", "increase_percent": "{:+.2f} %", "kl": "{:.5f}", "agreement": "{:.2%}",
        "accuracy": "{:.4f}",
    }  # fmt: skip
    for row in rows:
        figures = ("" if row[column] == "" else form.format(row[column]) for column, form in forms.items())
        where = (Path(str(row["dataset"])).name, str(row["job"]), str(row["name"]), f"{row['bits_per_weight']:.3f}")
        table.add_row(*where, *figures, str(row["on_front"]))
    print_table(table)


def _reports(client: Client, ids: Sequence[str]) -> dict[str, Report]:
    """Reports by job; members that have none, of a sweep that was asked for, are named and left out.

    Raises NotFound for any other job without a report, or when nothing is left.
    """
    found = {}
    for job_id in whole_ids(client, ids):
        try:
            found[job_id] = client.report(job_id)
        except NotFound as error:
            if client.get(job_id).sweep not in ids:
                raise
            say(f"left out: {error.message}")
    if not found:
        raise NotFound(f"no job of {', '.join(ids)} has a report")
    return found


def summary(report: Report) -> dict[str, str]:
    """The figures of a report by which jobs are compared, as text by row name."""
    linears = [linear for block in report.blocks for linear in block.linears]
    weights = [linear.shape[0] * linear.shape[1] for linear in linears]
    outliers = sum(linear.outlier_fraction * count for linear, count in zip(linears, weights, strict=True))
    return {
        "method": _method(report.spec.method),
        "bits per weight": f"{report.bits_per_weight:.3f}",
        "bytes before": size(report.bytes_before),
        "bytes after": size(report.bytes_after),
        **{
            f"perplexity {Path(name).name}": f"{value.dense:.3f} -> {value.compressed:.3f}"
            for name, value in report.perplexity.items()
        },
        **{
            f"accuracy {name}": f"{task.dense.value:.4f} -> {task.compressed.value:.4f}"
            for name, task in report.tasks.items()
        },
        "mean relative error": f"{sum(linear.relative_error for linear in linears) / len(linears):.4g}",
        "outlier share": f"{outliers / sum(weights):.3%}",
        **{f"time {phase}": duration(seconds) for phase, seconds in report.phases.items()},
        "peak memory": size(report.peak_bytes),
        "deviations": str(len(report.ledger)),
    }


def _method(config: MethodConfig) -> str:
    return config.kind if isinstance(config, PTQ161Config) else f"{config.kind}, {config.bits} bits"


@app.command(rich_help_panel=RESULTS)
def pull(
    job_id: JobId,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the artifact goes.")],
    as_json: Json = False,
) -> None:
    """Fetch a job's artifact, verified; an interrupted pull goes on where it stopped."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.description}", markup=False))
    here: dict[str, int] = {}
    with Client() as client, Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        job_id = whole_id(client, job_id)
        bar = bars.add_task("", total=sum(file.bytes for file in client.artifacts(job_id)))

        def show(file: ArtifactFile, num_bytes: int) -> None:
            here[file.name] = num_bytes
            bars.update(bar, completed=sum(here.values()), description=file.name)

        try:
            manifest = client.pull(job_id, out, show)
        except KeyboardInterrupt:
            detach(f"pull {job_id} --out {out}", "stopped; the same command goes on where this one ended")
    files = [file.model_dump(mode="json") for file in manifest.files]
    if as_json:
        print_json({"directory": str(out), "files": files})
    else:
        say(f"{len(files)} files, {size(sum(file.bytes for file in manifest.files))}, all verified")
        typer.echo(str(out))


@app.command(rich_help_panel=RESULTS)
def methods(as_json: Json = False) -> None:
    """Show the methods the service offers and their parameters."""
    with Client() as client:
        offered = client.methods()
    if as_json:
        print_json(offered)
        return
    table = plain_table("method", "parameter", "default", "description")
    for method in offered["data"]:
        for name, field in method["schema"]["properties"].items():
            if name != "kind":
                table.add_row(method["kind"], name, _default(field), _description(field))
    print_table(table)


def _default(field: dict[str, Any]) -> str:
    return json.dumps(field["default"]) if "default" in field else "required"


def _description(field: dict[str, Any]) -> str:
    texts = [part.get("description") for part in (field, *field.get("anyOf", ()))]
    return next((text for text in texts if text), "")


@app.command(rich_help_panel=RESULTS)
def ui(as_json: Json = False) -> None:
    """Print the address of the service's web page."""
    url = f"{find_service().url}/ui"
    if as_json:
        print_json({"url": url})
    else:
        typer.echo(url)
