"""The Python face of the service: submit jobs, follow them, fetch what they made.

    with Client() as client:
        job = client.submit(parse_spec({...}))
        client.wait(job.id)
        client.pull(job.id, Path("artifact"))

Every failure is a `bitpress.errors.BitpressError`.
"""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
from pydantic import TypeAdapter

from bitpress.answers import job_of, json_of, path_of, plain, read
from bitpress.artifacts import ArtifactFile, Manifest, Report, parse_report
from bitpress.cluster import Cluster
from bitpress.config import find_service
from bitpress.errors import Unavailable
from bitpress.jobs import Event, Job, JobEdit, JobFilter, JobSpec, StateEvent
from bitpress.keys import Caller, IssuedKey, KeyRecord, KeyRequest
from bitpress.plans import DevicesLike, PlanReport, PlanRequest, SweepPlanReport, SweepPlanRequest
from bitpress.pull import OnBytes, pull
from bitpress.sweeps import SweepSpec
from bitpress.transport import Transport
from bitpress.webhook_client import Webhooks

PAGE_SIZE = 100
POLL_SECONDS = 1.0
RECONNECT_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

ALL = JobFilter()

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[Event, ...])
_FILES = TypeAdapter(tuple[ArtifactFile, ...])
_PLAN = TypeAdapter(PlanReport)
_SWEEP_PLAN = TypeAdapter(SweepPlanReport)
_CLUSTER = TypeAdapter(Cluster)
_ISSUED = TypeAdapter(IssuedKey)
_CALLER = TypeAdapter(Caller)
_KEYS = TypeAdapter(tuple[KeyRecord, ...])


class Client:
    """A connection to one service; use it as a context manager or close it.

    Without arguments it finds the service by BITPRESS_API_URL and BITPRESS_API_KEY, a profile of the configuration
    file, else the embedded service of this machine, as `bitpress.config` says.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        service = find_service(url, key)
        self._transport = Transport(service.url, service.key)
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

    def submit(self, spec: JobSpec, idempotency_key: str | None = None, priority: int = 0) -> Job:
        """Create a job; a second call with the same key and spec returns the first one's job.

        Raises InvalidJob for a spec the service refuses, Conflict for a key used with another spec.
        """
        return job_of(self._submit(spec, idempotency_key, priority))

    def submit_sweep(self, sweep: SweepSpec, idempotency_key: str | None = None, priority: int = 0) -> tuple[Job, ...]:
        """Create all jobs of a sweep, which their `sweep` names; returns them in the order of the methods.

        Raises as `submit` does.
        """
        return tuple(job_of(data) for data in self._submit(sweep, idempotency_key, priority)["data"])

    def _submit(self, asked: JobSpec | SweepSpec, idempotency_key: str | None, priority: int) -> dict[str, Any]:
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        body, params = asked.model_dump(mode="json"), {"priority": priority}
        return json_of(self._transport.request("POST", "/v1/jobs", json=body, params=params, headers=headers))

    def plan(self, spec: JobSpec, devices_like: DevicesLike | None = None) -> PlanReport:
        """What a job would need and cost, on the service's devices or on others.

        Raises what the job would end with, such as OutOfMemory, CheckpointError or UnsupportedModel;
        Unavailable when no dispatcher is there to make the plan.
        """
        return read(_PLAN, self._plan(PlanRequest.of(spec, devices_like)))

    def plan_sweep(self, sweep: SweepSpec, devices_like: DevicesLike | None = None) -> SweepPlanReport:
        """What all members of a sweep together would need and cost. Raises as `plan` does."""
        return read(_SWEEP_PLAN, self._plan(SweepPlanRequest.of(sweep, devices_like)))

    def _plan(self, request: PlanRequest | SweepPlanRequest) -> dict[str, Any]:
        return json_of(self._transport.request("POST", "/v1/plans", json=request.model_dump(mode="json")))

    def get(self, job_id: str) -> Job:
        return job_of(json_of(self._transport.request("GET", path_of(job_id))))

    def list(self, where: JobFilter = ALL) -> Iterator[Job]:
        """Every job that fits, newest first, fetched page by page while the iterator is read."""
        given = where.model_dump(mode="json", exclude_defaults=True)
        params: dict[str, Any] = {"limit": PAGE_SIZE, **given}
        while True:
            page = json_of(self._transport.request("GET", "/v1/jobs", params=params))
            yield from (job_of(data) for data in page.get("data", ()))
            if not page.get("next_cursor"):
                return
            params["after"] = page["next_cursor"]

    def edit(self, job_id: str, edit: JobEdit, version: int | None = None) -> Job:
        """Change a job's name, labels or priority. Raises PreconditionFailed when it is not this `version`."""
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        body = edit.model_dump(mode="json", exclude_unset=True)
        return job_of(json_of(self._transport.request("PATCH", path_of(job_id), json=body, headers=headers)))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; one that has ended stays as it is."""
        return self._ask(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Ask a job to give its devices back and wait. Raises Conflict when it has ended or is being cancelled."""
        return self._ask(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it goes on behind its last published block. Raises Conflict as `pause` does."""
        return self._ask(job_id, "resume")

    def retry(self, job_id: str, fresh: bool = False) -> Job:
        """Queue a job that failed or was cancelled again; `fresh` computes its published blocks anew as well.

        Raises Conflict for any other job.
        """
        return self._ask(job_id, "retry", {"fresh": fresh})

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with all that it made. Raises Conflict when it has not ended."""
        self._transport.request("DELETE", path_of(job_id))

    def _ask(self, job_id: str, step: str, body: dict[str, bool] | None = None) -> Job:
        return job_of(json_of(self._transport.request("POST", path_of(job_id, step), json=body)))

    def history(self, job_id: str) -> tuple[Event, ...]:
        """The events so far, without waiting for more."""
        headers = {"Accept": "application/json"}
        page = json_of(self._transport.request("GET", path_of(job_id, "events"), headers=headers))
        return read(_EVENTS, page.get("data"))

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
                    if isinstance(event, StateEvent) and self._is_end(job_id, event):
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

    def _is_end(self, job_id: str, event: StateEvent) -> bool:
        """Whether a job ended with this event and was not retried since."""
        if not event.state.terminal:
            return False
        job = self.get(job_id)
        return job.state.terminal and (job.finished_at is None or event.at >= job.finished_at)

    def _open_events(self, job_id: str, after: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after is not None:
            headers["Last-Event-ID"] = after
        with self._transport.stream(path_of(job_id, "events"), headers) as response:
            for message in httpx2.EventSource(response):
                yield read(_EVENT, message.json())

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
        """Raises ArtifactError when it was written by another version of Bitpress."""
        return parse_report(self._transport.request("GET", path_of(job_id, "report")).content)

    def report_markdown(self, job_id: str) -> str:
        return self._transport.request("GET", path_of(job_id, "report"), headers={"Accept": "text/markdown"}).text

    def report_html(self, job_id: str) -> str:
        """The report as one page that needs nothing else."""
        return self._transport.request("GET", path_of(job_id, "report"), headers={"Accept": "text/html"}).text

    def artifacts(self, job_id: str) -> tuple[ArtifactFile, ...]:
        """The files of a finished job's artifact."""
        return read(_FILES, json_of(self._transport.request("GET", path_of(job_id, "artifacts"))).get("data"))

    def pull(self, job_id: str, directory: Path, on_bytes: OnBytes = lambda _file, _bytes: None) -> Manifest:
        """Fetch a job's artifact into `directory`, as `bitpress.pull` says."""
        return pull(self._transport, path_of(job_id, "artifacts"), self.artifacts(job_id), directory, on_bytes)

    def cluster(self) -> Cluster:
        """What the service runs on, and what waits."""
        return read(_CLUSTER, _plain(self._transport.request("GET", "/v1/cluster")))

    def models(self) -> dict[str, Any]:
        """Where models and texts may lie, and the models that were found there."""
        return json_of(self._transport.request("GET", "/v1/models"))

    def methods(self) -> dict[str, Any]:
        """The methods this service offers."""
        return json_of(self._transport.request("GET", "/v1/methods"))

    def whoami(self) -> Caller:
        """The key that is used here: its tenant, what it may do, and how long it lives."""
        return read(_CALLER, _plain(self._transport.request("GET", "/v1/whoami")))

    def create_key(self, request: KeyRequest) -> IssuedKey:
        """Make an API key; takes a key with the scope `admin`, as the embedded service's own has."""
        body = request.model_dump(mode="json")
        return read(_ISSUED, json_of(self._transport.request("POST", "/v1/keys", json=body)))

    def keys(self) -> tuple[KeyRecord, ...]:
        """All API keys that are valid."""
        return read(_KEYS, json_of(self._transport.request("GET", "/v1/keys")).get("data"))

    def revoke_key(self, key_id: str) -> None:
        self._transport.request("DELETE", f"/v1/keys/{plain(key_id, 'key')}")


def _plain(response: httpx2.Response) -> dict[str, Any]:
    """What an answer holds beside its kind."""
    return {name: value for name, value in json_of(response).items() if name != "object"}
