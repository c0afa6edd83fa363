"""What workers do with jobs: the part of the job store over Redis that dispatchers and drivers call."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bitpress.errors import Conflict
from bitpress.jobs import Failure, Job, Progress
from bitpress_service.jobstore import PATIENCE, BlockRecord, Capacity, Claim, LeaseStatus, Outcome
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import (
    Scripts,
    block_arguments,
    failure_json,
    job_of,
    milliseconds,
    pairs,
    unfenced,
)


class RedisWork(Scripts):
    """JobWork over Redis."""

    async def claim(
        self, owner: str, lease_seconds: float, capacity: Capacity | None = None, patience_seconds: float = PATIENCE
    ) -> Claim | None:
        cluster, devices = (capacity.cluster, capacity.devices) if capacity else ("", "")
        lease_ms, patience_ms = milliseconds(lease_seconds), milliseconds(patience_seconds)
        reply = await self._run("claim", owner, lease_ms, secrets.randbelow(10**9), cluster, devices, patience_ms)
        if reply is None:
            return None
        first, *others = (_claim_of(pairs(fields)) for fields in reply)
        return replace(first, others=tuple(others))

    async def renew(self, job_id: str, fence: int, lease_seconds: float) -> LeaseStatus:
        return LeaseStatus(unfenced(await self._run("renew", job_id, fence, milliseconds(lease_seconds)), job_id))

    async def record(
        self,
        job_id: str,
        fence: int,
        *,
        progress: Progress | None = None,
        block: BlockRecord | None = None,
        log: str | None = None,
        status_detail: str | None = None,
    ) -> LeaseStatus:
        reply = await self._run(
            "record", job_id, fence,
            progress.model_dump_json() if progress else "",
            json.dumps({"message": log}) if log is not None else "",
            json.dumps(status_detail) if status_detail is not None else "",
            *(block_arguments(block) if block else ("", "", "")),
        )  # fmt: skip
        return LeaseStatus(unfenced(reply, job_id))

    async def blocks(self, job_id: str) -> dict[int, BlockRecord]:
        with reporting_unavailable():
            records = await self._client.hgetall(f"{PREFIX}blocks:{job_id}")
        return {int(index): BlockRecord(**json.loads(record)) for index, record in records.items()}

    async def finish(
        self,
        job_id: str,
        fence: int,
        *,
        state: Outcome,
        error: Failure | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Job:
        wrong_files = state == "cancelled" if files else state == "succeeded"
        if (state == "failed") != (error is not None) or wrong_files:
            raise ValueError(f"{state}: an error goes with 'failed', files go with 'succeeded' or 'failed'")
        reply = await self._run("finish", job_id, fence, state, failure_json(error), json.dumps(dict(files or {})))
        if reply == "unasked":
            raise Conflict(f"nobody asked to cancel job {job_id}")
        return job_of(pairs(unfenced(reply, job_id)))

    async def release(self, job_id: str, fence: int, *, delay_seconds: float, error: Failure | None = None) -> Job:
        reply = await self._run("release", job_id, fence, milliseconds(delay_seconds), failure_json(error))
        return job_of(pairs(unfenced(reply, job_id)))

    async def reap(self, max_stalled_attempts: int = 3) -> Sequence[str]:
        return tuple(await self._run("reap", max_stalled_attempts))


def _claim_of(fields: Mapping[str, str]) -> Claim:
    return Claim(job_of(fields), int(fields["fence"]), fields.get("traceparent", ""))
