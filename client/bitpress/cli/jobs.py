"""Commands on jobs: submit, list, get."""

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

import typer

from bitpress.cli.app import JOBS, JobId, Json, app
from bitpress.cli.follow import end_with_outcome, show_until_ended
from bitpress.cli.ids import whole_id
from bitpress.cli.output import plain_table, print_json, print_table, say
from bitpress.client import Client
from bitpress.errors import InvalidJob
from bitpress.jobs import Job, JobFilter, JobSpec, JobState, validated
from bitpress.progress import describe
from bitpress.sweeps import SweepSpec, parse_submission


@app.command(rich_help_panel=JOBS)
def submit(
    spec: Annotated[
        typer.FileBinaryRead, typer.Argument(metavar="SPEC.json", help="The job spec; - reads it from stdin.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the spec: --set method.bits=2"),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second submit with the same key returns the first one's job.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What you call the job.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Jobs with a higher one are run first.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and stay until the job has ended.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="With --wait: stay no longer.")] = None,
    as_json: Json = False,
) -> None:
    """Submit a job, or a sweep, and print its id, or those of its jobs."""
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout goes with --wait")
    named = [] if name is None else [f"name={json.dumps(name)}"]
    parsed = read_spec(spec.read(), [*named, *(assignments or [])])
    with Client() as client:
        jobs = _submit(client, parsed, idempotency_key, priority)
        ids = [job.id for job in jobs]
        if wait:
            if not as_json:
                say(f"submitted {' '.join(ids)}")
            show_until_ended(client, ids, timeout)
            jobs = [client.get(job_id) for job_id in ids]
    if as_json:
        documents = [job.model_dump(mode="json") for job in jobs]
        print_json(documents[0] if isinstance(parsed, JobSpec) else {"sweep": jobs[0].sweep, "jobs": documents})
    else:
        if jobs[0].sweep:
            say(f"sweep {jobs[0].sweep}")
        typer.echo("\n".join(ids))
    if wait:
        end_with_outcome(jobs)


def _submit(client: Client, asked: JobSpec | SweepSpec, idempotency_key: str | None, priority: int) -> Sequence[Job]:
    if isinstance(asked, SweepSpec):
        return client.submit_sweep(asked, idempotency_key, priority)
    return [client.submit(asked, idempotency_key, priority)]


def read_spec(text: str | bytes, assignments: list[str]) -> JobSpec | SweepSpec:
    """Parse the spec of a job or a sweep and apply `PATH=VALUE` changes; VALUE is JSON where it can be, else a string.

    Raises InvalidJob.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the job spec is not JSON: {error}") from None
    for assignment in assignments:
        _assign(data, assignment)
    return parse_submission(data)


def _assign(data: Any, assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    *parents, name = path.split(".")
    for parent in parents:
        data = data.setdefault(parent, {}) if isinstance(data, dict) else None
    if not equals or not isinstance(data, dict):
        raise typer.BadParameter(f"expected PATH=VALUE with the path of a field, found {assignment!r}")
    try:
        data[name] = json.loads(text)
    except ValueError:
        data[name] = text


@app.command(name="list", rich_help_panel=JOBS)
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this label.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs of this method.")] = None,
    model: Annotated[str | None, typer.Option(metavar="URI", help="Only jobs on this model.")] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="Only jobs whose name contains this.")] = None,
    sweep: Annotated[str | None, typer.Option(metavar="ID", help="Only the members of this sweep.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only jobs that were created after this local time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    given: dict[str, object] = {
        "state": state, "label": label, "method": method, "model": model, "name": name, "sweep": sweep,
    }  # fmt: skip
    if since:
        given["created_after"] = since.astimezone()
    where = validated(JobFilter, {field: value for field, value in given.items() if value is not None}, "the filter")
    with Client() as client:
        jobs = list(islice(client.list(where), limit))
    if as_json:
        print_json([job.model_dump(mode="json") for job in jobs])
        return
    table = plain_table("job", "name", "state", "method", "model", "progress", "created")
    for job in jobs:
        created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        fraction = f"{job.progress.fraction:.0%}"
        method_kind, uri = job.spec.method.kind, job.spec.model.uri
        table.add_row(job.id, job.spec.name or "", job.state.value, method_kind, uri, fraction, created)
    print_table(table)


@app.command(rich_help_panel=JOBS)
def get(job_id: JobId, as_json: Json = False) -> None:
    """Show one job."""
    with Client() as client:
        print_job(client.get(whole_id(client, job_id)), as_json)


def print_job(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job.model_dump(mode="json"))
        return
    rows = {
        "job": job.id,
        "name": job.spec.name,
        "state": describe(job.progress, job.state),
        "detail": job.status_detail,
        "progress": f"{job.progress.fraction:.0%}",
        "model": job.spec.model.uri,
        "method": job.spec.method.model_dump_json(),
        "sweep": job.sweep,
        "attempt": str(job.attempt),
        "error": f"[{job.error.code}] {job.error.message}" if job.error else None,
        "created": job.created_at.isoformat(),
        "started": job.started_at and job.started_at.isoformat(),
        "finished": job.finished_at and job.finished_at.isoformat(),
    }
    table = plain_table("", "")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    print_table(table)
