"""What users ask of their jobs: the part of the job store over Redis that the API calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bitpress.errors import Conflict
from bitpress.jobs import Event, Job, JobPage, JobSpec, JobState, canonical_json
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import Scripts, event_of, job_of, milliseconds, new_id, not_found, pairs, sha256
from bitpress_service.tracing import traceparent

IDEMPOTENCY_SECONDS = 24 * 3600
_EVENTS_AT_ONCE = 100  # of each job: a long history is read in turns with other work


class RedisRequests(Scripts):
    """JobRequests over Redis."""

    async def create(
        self, tenant: str, spec: JobSpec, *, idempotency_key: str | None = None, priority: int = 0
    ) -> tuple[Job, bool]:
        job_id = new_id()
        idempotency = sha256(idempotency_key) if idempotency_key is not None else ""
        fingerprint = sha256(canonical_json([spec.model_dump(mode="json"), priority]))
        stored = await self._run(
            "create", job_id, tenant, priority, spec.model_dump_json(), idempotency, fingerprint,
            IDEMPOTENCY_SECONDS * 1000, traceparent(),
        )  # fmt: skip
        if stored == "conflict":
            raise Conflict(f"idempotency key {idempotency_key!r} was used with another job")
        return await self.get(stored), stored != job_id

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        with reporting_unavailable():
            fields: Any = await self._client.hgetall(f"{PREFIX}job:{job_id}")
        if not fields or (tenant is not None and fields["tenant"] != tenant):
            raise not_found(job_id)
        return job_of(fields)

    async def list(
        self, tenant: str, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> JobPage:
        # One more than asked for tells whether there is a next page.
        rows = await self._run("list", tenant, state or "", cursor or "", limit + 1)
        jobs = tuple(job_of(pairs(row)) for row in rows)
        return JobPage(data=jobs[:limit], next_cursor=jobs[limit - 1].id if len(jobs) > limit else None)

    async def request_cancel(self, job_id: str, tenant: str | None = None) -> Job:
        reply = await self._run("cancel", job_id, tenant or "")
        if reply == "missing":
            raise not_found(job_id)
        return job_of(pairs(reply))

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


def _stream(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"
