"""Commands that follow jobs as they run: watch, logs."""

from typing import Annotated

import typer

from bitpress.cli.app import JOBS, JobId, JobIds, JsonLines, app
from bitpress.cli.follow import detach, end_with_outcome, show_until_ended
from bitpress.cli.ids import whole_id, whole_ids
from bitpress.cli.output import print_json
from bitpress.client import Client
from bitpress.jobs import BlockEvent, Event, LogEvent, StateEvent


@app.command(rich_help_panel=JOBS)
def watch(
    job_ids: JobIds,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Stay no longer than this.")] = None,
    as_json: JsonLines = False,
) -> None:
    """Show the progress of jobs until they have ended; Ctrl-C leaves them running."""
    with Client() as client:
        job_ids = whole_ids(client, job_ids)
        show_until_ended(client, job_ids, timeout, as_json)
        jobs = [client.get(job_id) for job_id in job_ids]
    end_with_outcome(jobs)


@app.command(rich_help_panel=JOBS)
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job has ended.")] = False,
    as_json: JsonLines = False,
) -> None:
    """Print what happened to a job: states, blocks and messages; with --json its progress as well."""
    with Client() as client:
        job_id = whole_id(client, job_id)
        events = client.events(job_id) if follow else client.history(job_id)
        try:
            for event in events:
                if as_json:
                    print_json(event.model_dump(mode="json"))
                elif text := _line(event):
                    typer.echo(f"{event.at.astimezone():%H:%M:%S} {text}")
        except KeyboardInterrupt:
            detach(f"logs -f {job_id}")


def _line(event: Event) -> str | None:
    match event:
        case StateEvent():
            failure = f": [{event.error.code}] {event.error.message}" if event.error else ""
            return f"{event.state} (attempt {event.attempt}){failure}"
        case BlockEvent():
            return f"block {event.index} published: {event.bytes} bytes, mean relative error {event.relative_error:.3g}"
        case LogEvent():
            return event.message
        case _:
            return None
