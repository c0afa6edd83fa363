"""What users ask of their jobs: the part of the job store over Redis that the API calls."""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from bitpress.errors import Conflict, PreconditionFailed, TooManyJobs
from bitpress.jobs import Event, Job, JobEdit, JobFilter, JobPage, JobSpec, canonical_json
from bitpress.sweeps import SweepSpec
from bitpress_service.artifactstore import job_prefix
from bitpress_service.jobstore import ALL
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import (
    Scripts,
    event_of,
    facets,
    job_of,
    label_text,
    milliseconds,
    new_id,
    not_found,
    pairs,
    sha256,
)
from bitpress_service.tracing import traceparent

IDEMPOTENCY_SECONDS = 24 * 3600
_POLL_SECONDS = 0.2  # who waits for another version of a job asks this often
_EVENTS_AT_ONCE = 100  # of each job: a long history is read in turns with other work

_IN_ORDER_TO = {
    "pause": "only a job that is queued or running can be paused",
    "resume": "only a job that is paused can be resumed",
    "retry": "only a job that failed or was cancelled can be retried",
}


class RedisRequests(Scripts):
    """JobRequests over Redis."""

    async def create(
        self,
        tenant: str,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        max_waiting: int | None = None,
    ) -> tuple[Job, bool]:
        (job,), replayed = await self._create(tenant, spec, [spec], "", idempotency_key, priority, max_waiting)
        return job, replayed

    async def create_sweep(
        self,
        tenant: str,
        sweep: SweepSpec,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        max_waiting: int | None = None,
    ) -> tuple[Sequence[Job], bool]:
        specs = sweep.specs()
        return await self._create(tenant, sweep, specs, new_id("sweep"), idempotency_key, priority, max_waiting)

    async def _create(
        self,
        tenant: str,
        asked: JobSpec | SweepSpec,
        specs: Sequence[JobSpec],
        sweep: str,
        idempotency_key: str | None,
        priority: int,
        max_waiting: int | None,
    ) -> tuple[Sequence[Job], bool]:
        """Create the jobs of what was asked for, in one step."""
        ids = sorted(new_id() for _ in specs)  # which is the order that they are listed in
        idempotency = sha256(idempotency_key) if idempotency_key is not None else ""
        fingerprint = sha256(canonical_json([asked.model_dump(mode="json"), priority]))
        _, model, name, labels = facets(specs[0])
        each = zip(ids, (spec.model_dump_json() for spec in specs), (spec.method.kind for spec in specs), strict=True)
        stored = await self._run(
            "create", tenant, priority, idempotency, fingerprint, IDEMPOTENCY_SECONDS * 1000, _or_empty(max_waiting),
            traceparent(), sweep, model, name, labels, _or_empty(asked.devices), *chain.from_iterable(each),
        )  # fmt: skip
        if stored == "full":
            raise _full(tenant, max_waiting, len(ids))
        if stored == "conflict":
            raise Conflict(f"idempotency key {idempotency_key!r} was used with another job")
        return [await self.get(job_id) for job_id in stored], stored != ids

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        return job_of(await self._fields(job_id, tenant))

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None, where: JobFilter = ALL) -> JobPage:
        created_after = "" if where.created_after is None else round(where.created_after.timestamp() * 1000)
        labels = (label_text(*label.split("=", 1)) for label in where.label)
        behind, rows = await self._run(
            "list", tenant, where.state or "", _id_in(cursor), limit, where.method or "", where.model or "",
            (where.name or "").casefold(), created_after, where.id or "", where.sweep or "", *labels,
        )  # fmt: skip
        return JobPage(data=tuple(job_of(pairs(row)) for row in rows), next_cursor=_cursor(behind))

    async def request_cancel(self, job_id: str, tenant: str | None = None) -> Job:
        return await self._ask("cancel", job_id, tenant or "")

    async def pause(self, job_id: str, tenant: str) -> Job:
        return await self._ask("pause", job_id, tenant)

    async def resume(self, job_id: str, tenant: str) -> Job:
        return await self._ask("resume", job_id, tenant)

    async def retry(self, job_id: str, tenant: str, *, fresh: bool = False, max_waiting: int | None = None) -> Job:
        return await self._ask("retry", job_id, tenant, int(fresh), _or_empty(max_waiting))

    async def edit(self, job_id: str, tenant: str, edit: JobEdit, expected_version: int | None = None) -> Job:
        priority = edit.priority if "priority" in edit.model_fields_set else ""
        while True:
            fields = await self._fields(job_id, tenant)
            spec = edit.apply(JobSpec.model_validate_json(fields["spec"]))
            _, _, name, labels = facets(spec)
            reply = await self._run(
                "edit", job_id, tenant, _or_empty(expected_version), fields["spec"], spec.model_dump_json(),
                name, labels, priority,
            )  # fmt: skip
            if reply == "stale":
                raise PreconditionFailed(
                    f"job {job_id} has changed since it was version {expected_version}; read it again"
                )
            if reply == "busy":
                raise Conflict(f"job {job_id} is {fields['state']}; only one that is queued or paused has a priority")
            if reply != "changed":  # by another edit, in between
                return job_of(pairs(_found(reply, job_id)))

    async def delete(self, job_id: str, tenant: str) -> None:
        reply = _found(await self._run("delete", job_id, tenant, job_prefix(tenant, job_id)), job_id)
        if reply == "conflict":
            raise Conflict(f"job {job_id} has not ended; cancel it first")

    async def trash(self) -> Sequence[str]:
        with reporting_unavailable():
            prefixes: Any = await self._client.smembers(f"{PREFIX}trash")
        return tuple(sorted(prefixes))

    async def emptied(self, prefix: str) -> None:
        with reporting_unavailable():
            await self._client.srem(f"{PREFIX}trash", prefix)

    async def changed(self, job_id: str, version: int, wait_seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_seconds
        with reporting_unavailable():
            while await self._client.hget(f"{PREFIX}job:{job_id}", "version") == str(version):
                if (left := deadline - clock()) <= 0:
                    return
                await asyncio.sleep(min(left, _POLL_SECONDS))

    async def events(self, job_id: str, after: str = "0", limit: int = 1000) -> Sequence[Event]:
        with reporting_unavailable():
            rows: Any = await self._client.xrange(_stream(job_id), f"({after}", "+", limit)
        return tuple(event_of(stream_id, fields) for stream_id, fields in rows)

    async def new_events(self, after: Mapping[str, str], wait_seconds: float) -> Mapping[str, Sequence[Event]]:
        positions: dict[Any, Any] = {_stream(job_id): position for job_id, position in after.items()}
        with reporting_unavailable():
            # To Redis, 0 ms would be for ever.
            found: Any = await self._client.xread(positions, _EVENTS_AT_ONCE, max(1, milliseconds(wait_seconds)))
        return {
            stream.removeprefix(_stream("")): tuple(event_of(stream_id, fields) for stream_id, fields in rows)
            for stream, rows in found
        }

    async def files(self, job_id: str) -> dict[str, str]:
        with reporting_unavailable():
            files = await self._client.hget(f"{PREFIX}job:{job_id}", "files")
        return dict(json.loads(files)) if files else {}

    async def _fields(self, job_id: str, tenant: str | None) -> Any:
        with reporting_unavailable():
            fields: Any = await self._client.hgetall(f"{PREFIX}job:{job_id}")
        if not fields or (tenant is not None and fields["tenant"] != tenant):
            raise not_found(job_id)
        return fields

    async def _ask(self, script: str, job_id: str, *arguments: str | int) -> Job:
        reply = _found(await self._run(script, job_id, *arguments), job_id)
        if reply == "conflict":
            state = (await self.get(job_id)).state
            raise Conflict(f"job {job_id} is {state}: {_IN_ORDER_TO[script]}")
        if reply == "full":
            raise _full(str(arguments[0]), arguments[-1])
        return job_of(pairs(reply))


def _stream(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"


def _found(reply: Any, job_id: str) -> Any:
    if reply == "missing":
        raise not_found(job_id)
    return reply


def _full(tenant: str, most: str | int | None, more: int = 1) -> TooManyJobs:
    if more > 1:
        return TooManyJobs(f"with {more} more, over {most} jobs of tenant {tenant} would wait; submit fewer, or later")
    return TooManyJobs(f"{most} jobs of tenant {tenant} wait already; cancel one, or come back when one has started")


def _or_empty(number: int | None) -> str | int:
    return "" if number is None else number


def _cursor(behind: str) -> str | None:
    return base64.urlsafe_b64encode(behind.encode()).decode() or None


def _id_in(cursor: str | None) -> str:
    """The id that a cursor stands for; '' for the beginning. Raises ValueError."""
    return base64.b64decode((cursor or "").encode("ascii"), b"-_", validate=True).decode()
