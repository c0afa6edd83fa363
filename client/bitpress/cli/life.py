"""Commands that steer jobs through their life: cancel, pause, resume, retry, edit, rm."""

import sys
from typing import Annotated

import typer

from bitpress.cli.app import JOBS, JobId, JobIds, Json, app
from bitpress.cli.ids import whole_id, whole_ids
from bitpress.cli.jobs import print_job
from bitpress.cli.output import print_json, say
from bitpress.client import Client
from bitpress.jobs import JobEdit, validated


@app.command(rich_help_panel=JOBS)
def cancel(job_id: JobId, as_json: Json = False) -> None:
    """Ask a job to stop; one that has ended stays as it is."""
    with Client() as client:
        print_job(client.cancel(whole_id(client, job_id)), as_json)


@app.command(rich_help_panel=JOBS)
def pause(job_id: JobId, as_json: Json = False) -> None:
    """Ask a job to give its devices back and wait; its published blocks are kept."""
    with Client() as client:
        print_job(client.pause(whole_id(client, job_id)), as_json)


@app.command(rich_help_panel=JOBS)
def resume(job_id: JobId, as_json: Json = False) -> None:
    """Queue a paused job again; it goes on behind its last published block."""
    with Client() as client:
        print_job(client.resume(whole_id(client, job_id)), as_json)


@app.command(rich_help_panel=JOBS)
def retry(
    job_id: JobId,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute the published blocks anew as well.")] = False,
    as_json: Json = False,
) -> None:
    """Queue a job that failed or was cancelled again; it goes on behind its last published block."""
    with Client() as client:
        print_job(client.retry(whole_id(client, job_id), fresh), as_json)


@app.command(rich_help_panel=JOBS)
def edit(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="Its new name; empty takes the name away.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Set a label; empty VALUE takes it away.")
    ] = None,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Of a job that is queued or paused.")] = None,
    as_json: Json = False,
) -> None:
    """Change a job's name, labels or priority."""
    pairs = [label.partition("=")[::2] for label in labels or ()]
    if any("=" not in label for label in labels or ()):
        raise typer.BadParameter("expected --label KEY=VALUE")
    with Client() as client:
        job = client.get(whole_id(client, job_id))
        wanted: dict[str, object] = {}
        if name is not None:
            wanted["name"] = name or None
        if pairs:
            wanted["labels"] = {key: value for key, value in (job.spec.labels | dict(pairs)).items() if value}
        if priority is not None:
            wanted["priority"] = priority
        print_job(client.edit(job.id, validated(JobEdit, wanted, "the change")), as_json)


@app.command(rich_help_panel=JOBS)
def rm(
    job_ids: JobIds,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove jobs that have ended, with their artifacts and reports."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("expected --yes where nobody can be asked")
    with Client() as client:
        job_ids = whole_ids(client, job_ids)
        if not yes and not typer.confirm(f"Remove {len(job_ids)} job(s) and all that they made?", err=True):
            raise typer.Exit(1)
        for job_id in job_ids:
            client.delete(job_id)
            say(f"removed {job_id}")
    if as_json:
        print_json({"removed": job_ids})
