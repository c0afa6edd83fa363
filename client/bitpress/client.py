"""The Python face of the service: submit jobs, follow them, fetch what they made.

    with Client() as client:
        job = client.submit(parse_spec({...}))
        client.wait(job.id)
        client.pull(job.id, Path("artifact"))

Every failure is a `bitpress.errors.BitpressError`.
"""

import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from bitpress.artifacts import ArtifactFile, Manifest, Report
from bitpress.errors import BitpressError, NotFound, Unavailable
from bitpress.jobs import Event, Job, JobSpec, JobState, StateEvent
from bitpress.plans import DevicesLike, PlanReport, PlanRequest
from bitpress.pull import OnBytes, pull
from bitpress.transport import Transport, find_service
from bitpress.webhook_client import Webhooks

PAGE_SIZE = 100
POLL_SECONDS = 1.0
RECONNECT_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

_T = TypeVar("_T")
_JOB = TypeAdapter(Job)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[Event, ...])
_FILES = TypeAdapter(tuple[ArtifactFile, ...])
_REPORT = TypeAdapter(Report)
_PLAN = TypeAdapter(PlanReport)


class Client:
    """A connection to one service; use it as a context manager or close it.

    Without arguments it finds the service by BITPRESS_API_URL and BITPRESS_API_KEY, else the embedded
    service of this machine, as `bitpress.transport.find_service` says.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self._transport = Transport(*find_service(url, key))
        self.webhooks = Webhooks(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    @property
    def url(self) -> str:
        return self._transport.url

    def submit(self, spec: JobSpec, idempotency_key: str | None = None) -> Job:
        """Create a job; a second call with the same key and spec returns the first one's job.

        Raises InvalidJob for a spec the service refuses, Conflict for a key used with another spec.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        body = spec.model_dump(mode="json")
        return _job(_json(self._transport.request("POST", "/v1/jobs", json=body, headers=headers)))

    def plan(self, spec: JobSpec, devices_like: DevicesLike | None = None) -> PlanReport:
        """What a job would need and cost, on the service's devices or on others.

        Raises what the job would end with, such as OutOfMemory, CheckpointError or UnsupportedModel;
        Unavailable when no dispatcher is there to make the plan.
        """
        body = PlanRequest.of(spec, devices_like).model_dump(mode="json")
        return _read(_PLAN, _json(self._transport.request("POST", "/v1/plans", json=body)))

    def get(self, job_id: str) -> Job:
        return _job(_json(self._transport.request("GET", _path(job_id))))

    def list(self, state: JobState | None = None) -> Iterator[Job]:
        """Every job, newest first, fetched page by page while the iterator is read."""
        params: dict[str, str | int] = {"limit": PAGE_SIZE} | ({"state": state.value} if state else {})
        while True:
            page = _json(self._transport.request("GET", "/v1/jobs", params=params))
            yield from (_job(data) for data in page.get("data", ()))
            if not page.get("next_cursor"):
                return
            params["after"] = page["next_cursor"]

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; one that has ended stays as it is."""
        return _job(_json(self._transport.request("POST", _path(job_id, "cancel"))))

    def history(self, job_id: str) -> tuple[Event, ...]:
        """The events so far, without waiting for more."""
        headers = {"Accept": "application/json"}
        page = _json(self._transport.request("GET", _path(job_id, "events"), headers=headers))
        return _read(_EVENTS, page.get("data"))

    def events(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """Events after the one with id `after` (all when None) as they come, until the job has ended.

        A dropped connection is opened again after the last event seen, so that none is lost or repeated.
        Raises Unavailable when it cannot be opened again within about a minute.
        """
        ended, misses = self.get(job_id).state.terminal, 0
        while True:
            seen, failure = after, None
            try:
                for event in self._open_events(job_id, after):
                    after = event.id
                    yield event
                    if isinstance(event, StateEvent) and event.state.terminal:
                        return
                if ended and after == seen:
                    return  # the job had ended before the stream was opened: nothing is left to come
                ended = self.get(job_id).state.terminal
            except Unavailable as error:
                failure = error
            if failure is None or after != seen:
                misses = 0
            elif (misses := misses + 1) == len(RECONNECT_SECONDS):
                raise failure
            time.sleep(RECONNECT_SECONDS[misses])

    def _open_events(self, job_id: str, after: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after is not None:
            headers["Last-Event-ID"] = after
        with self._transport.stream(_path(job_id, "events"), headers) as response:
            for message in httpx2.EventSource(response):
                yield _read(_EVENT, message.json())

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> Job:
        """Return the job once it has ended, however it ended.

        Raises TimeoutError when that takes longer than `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (job := self.get(job_id)).state.terminal:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is still {job.state} after {timeout_seconds:g} s")
            time.sleep(POLL_SECONDS)
        return job

    def report(self, job_id: str) -> Report:
        return _read(_REPORT, _json(self._transport.request("GET", _path(job_id, "report"))))

    def report_markdown(self, job_id: str) -> str:
        return self._transport.request("GET", _path(job_id, "report"), headers={"Accept": "text/markdown"}).text

    def artifacts(self, job_id: str) -> tuple[ArtifactFile, ...]:
        """The files of a finished job's artifact."""
        return _read(_FILES, _json(self._transport.request("GET", _path(job_id, "artifacts"))).get("data"))

    def pull(self, job_id: str, directory: Path, on_bytes: OnBytes = lambda _file, _bytes: None) -> Manifest:
        """Fetch a job's artifact into `directory`, as `bitpress.pull` says."""
        return pull(self._transport, _path(job_id, "artifacts"), self.artifacts(job_id), directory, on_bytes)

    def methods(self) -> dict[str, Any]:
        """The methods this service offers."""
        return _json(self._transport.request("GET", "/v1/methods"))


def _path(job_id: str, *rest: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", job_id):
        raise NotFound(f"no job can have the id {job_id!r}")
    return "/".join(("/v1/jobs", job_id, *rest))


def _json(response: httpx2.Response) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        found = response.headers.get("content-type", "nothing")
        raise BitpressError(f"expected a JSON object from {response.url}, found {found}; is it a Bitpress service?")
    return data


def _job(data: dict[str, Any]) -> Job:
    return _read(_JOB, {name: value for name, value in data.items() if name not in ("object", "urls")})


def _read(adapter: TypeAdapter[_T], data: object) -> _T:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BitpressError(
            f"the service's answer is not understood by this version of the client: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
