"""Ids as people write them: whole, by a beginning that only one job has, or `-` for those on stdin."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from bitpress.answers import json_of, plain
from bitpress.client import Client
from bitpress.config import find_service
from bitpress.errors import BitpressError, Conflict, NotFound
from bitpress.jobs import JobFilter
from bitpress.sweeps import SWEEP_ID
from bitpress.transport import Transport

JOB, LENGTH = "job_", 30  # of a job's id
STDIN = "-"
SHOWN_MATCHES = 5
OFFERED = 50


def whole_ids(client: Client, given: Sequence[str]) -> list[str]:
    """The jobs that are meant, each once; `-` stands for the ids on stdin, that of a sweep for those of its members.

    Raises as `whole_id` does, NotFound also for a sweep that has no members.
    """
    words = [word for text in given for word in (sys.stdin.read().split() if text == STDIN else [text])]
    return list(dict.fromkeys(job_id for word in words for job_id in _jobs(client, word)))


def _jobs(client: Client, word: str) -> list[str]:
    if not word.startswith(SWEEP_ID):
        return [whole_id(client, word)]
    members = sorted(job.id for job in client.list(JobFilter(sweep=word)))  # in the order of their methods
    if not members:
        raise NotFound(f"no sweep {word!r}")
    return members


def whole_id(client: Client, given: str) -> str:
    """The id that begins like this; `job_` may be left out.

    Raises NotFound when there is none, Conflict when there are several.
    """
    begin = _beginning(given)
    if not begin.startswith(JOB) or len(begin) >= LENGTH:
        return begin  # of something else, or whole
    found = [job.id for job in islice(client.list(JobFilter(id=plain(begin, "job"))), SHOWN_MATCHES + 1)]
    if not found:
        raise NotFound(f"no job has an id that begins with {begin}; `bitpress list` shows them")
    if len(found) > 1:
        several = ", ".join(found[:SHOWN_MATCHES]) + (", and more" if len(found) > SHOWN_MATCHES else "")
        raise Conflict(f"several jobs have an id that begins with {begin}: {several}; write more of it")
    return found[0]


def complete_job(incomplete: str) -> Iterator[tuple[str, str]]:
    """Ids for a shell, the newest first, each with a word on its job; none when the service does not answer at once."""
    try:
        service = find_service()
        with Transport(service.url, service.key, hurry=True) as transport:
            params = {"limit": OFFERED, "id": _beginning(incomplete)}
            page = json_of(transport.request("GET", "/v1/jobs", params=params))
    except BitpressError:
        return
    for job in page["data"]:
        yield job["id"], " ".join(filter(None, (job["state"], job["spec"].get("name"), job["spec"]["model"]["uri"])))


def _beginning(given: str) -> str:
    return given if given.startswith(JOB) or "_" in given else JOB + given.upper()
