"""Following jobs until they have ended, several at once."""

import time
from collections.abc import Iterator, Sequence
from queue import Empty, Queue
from threading import Thread
from typing import NoReturn

import typer

from bitpress.advice import advice
from bitpress.cli.exits import DETACHED, outcome
from bitpress.cli.output import print_json, say
from bitpress.client import Client
from bitpress.jobs import Event, Job, ProgressEvent, StateEvent
from bitpress.progress import ProgressBars

Arrival = tuple[str, Event | Exception | None]
"""A job's id with its next event, with what broke its stream, or with None at its end."""


def show_until_ended(
    client: Client, job_ids: Sequence[str], timeout_seconds: float | None, as_json: bool = False
) -> None:
    """Follow jobs with a bar for each on stderr, or with their events as JSON lines on stdout.

    Raises TimeoutError when they have not ended in time; Ctrl-C leaves with the exit code for it.
    """
    jobs = {job_id: client.get(job_id) for job_id in job_ids}
    progress = {job_id: job.progress for job_id, job in jobs.items()}
    states = {job_id: job.state for job_id, job in jobs.items()}
    try:
        with ProgressBars() as bars:
            for job_id, event in _follow(client, list(jobs), timeout_seconds):
                if as_json:
                    print_json({"job": job_id} | event.model_dump(mode="json"))
                    continue
                if isinstance(event, ProgressEvent):
                    progress[job_id] = event.progress
                elif isinstance(event, StateEvent):
                    states[job_id] = event.state
                bars.update(job_id, progress[job_id], states[job_id])
    except KeyboardInterrupt:
        detach(" ".join(("watch", *job_ids)))


def end_with_outcome(jobs: Sequence[Job]) -> None:
    """Leave with the exit code of jobs that have ended, and say why those failed that did."""
    for job in jobs:
        if job.error:
            say(f"{job.id}: error [{job.error.code}]: {job.error.message}\nnext: {advice(job.error.code)}")
    raise typer.Exit(outcome(jobs))


def detach(command: str, what: str = "detached; the work goes on. Follow it again") -> NoReturn:
    """Leave because of Ctrl-C, with the command that goes on."""
    say(f"{what}: bitpress {command}")
    raise typer.Exit(DETACHED)


def _follow(client: Client, job_ids: Sequence[str], timeout_seconds: float | None) -> Iterator[tuple[str, Event]]:
    """Events of several jobs as they come, each job's in their order; one thread reads each stream."""
    arrived: Queue[Arrival] = Queue()
    for job_id in job_ids:
        Thread(target=_read, args=(client, job_id, arrived), daemon=True).start()
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    running = set(job_ids)
    while running:
        try:
            job_id, item = arrived.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))
        except Empty:
            raise TimeoutError(f"not ended within {timeout_seconds:g} s: {', '.join(sorted(running))}") from None
        if item is None:
            running.remove(job_id)
        elif isinstance(item, Exception):
            raise item
        else:
            yield job_id, item


def _read(client: Client, job_id: str, arrived: Queue[Arrival]) -> None:
    try:
        for event in client.events(job_id):
            arrived.put((job_id, event))
    except Exception as error:  # handed to the thread that waits, which raises it
        arrived.put((job_id, error))
    else:
        arrived.put((job_id, None))
