"""The job store over Redis. Each state change is one script of `lua/`, hence atomic; `lua/common.lua` lists the keys.

The client repeats a command whose reply was lost, so every script may run twice: `create`, `finish` and
`release` recognize their own earlier run, a repeated block record changes nothing, and a claim that nobody
got the reply of comes back when its lease runs out.
"""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from redis.asyncio import Redis

from bitpress.errors import Conflict, NotFound, Unavailable
from bitpress.jobs import Event, Failure, Job, JobPage, JobSpec, JobState, Progress, canonical_json
from bitpress.plans import PlanAnswer, PlanRequest
from bitpress_service.jobstore import BlockRecord, Claim, Fenced, LeaseStatus, Outcome, PlanOrder
from bitpress_service.redis_client import PREFIX, connect, reporting_unavailable

IDEMPOTENCY_SECONDS = 24 * 3600

# Who waits for events asks this often. XREAD BLOCK would be told at once, but holds a connection all the time.
_POLL_SECONDS = 0.2

_LUA = Path(__file__).parent / "lua"
_SCRIPTS = (
    "create", "list", "cancel", "claim", "renew", "record", "finish", "release", "reap", "ask_plan", "claim_plan",
    "answer_plan",
)  # fmt: skip
_ANSWER_SECONDS = (
    5.0  # a plan's answer is there for all who wait, and for one who repeats a request whose reply was lost
)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class RedisJobStore:
    """JobStore over a Redis 6.2 or newer, or a Valkey. Takes ownership of `client`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        common = (_LUA / "common.lua").read_text()
        self._scripts = {name: client.register_script(common + (_LUA / f"{name}.lua").read_text()) for name in _SCRIPTS}

    @classmethod
    def from_url(cls, url: str) -> Self:
        return cls(connect(url))

    async def create(
        self, tenant: str, spec: JobSpec, *, idempotency_key: str | None = None, priority: int = 0
    ) -> tuple[Job, bool]:
        job_id = _new_id()
        idempotency = _sha256(idempotency_key) if idempotency_key is not None else ""
        fingerprint = _sha256(canonical_json([spec.model_dump(mode="json"), priority]))
        stored = await self._run(
            "create", job_id, tenant, priority, spec.model_dump_json(), idempotency, fingerprint,
            IDEMPOTENCY_SECONDS * 1000,
        )  # fmt: skip
        if stored == "conflict":
            raise Conflict(f"idempotency key {idempotency_key!r} was used with another job")
        return await self.get(stored), stored != job_id

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        with reporting_unavailable():
            fields: Any = await self._client.hgetall(f"{PREFIX}job:{job_id}")
        if not fields or (tenant is not None and fields["tenant"] != tenant):
            raise _not_found(job_id)
        return _job(fields)

    async def list(
        self, tenant: str, *, limit: int, cursor: str | None = None, state: JobState | None = None
    ) -> JobPage:
        # One more than asked for tells whether there is a next page.
        rows = await self._run("list", tenant, state or "", cursor or "", limit + 1)
        jobs = tuple(_job(_pairs(row)) for row in rows)
        return JobPage(data=jobs[:limit], next_cursor=jobs[limit - 1].id if len(jobs) > limit else None)

    async def request_cancel(self, job_id: str, tenant: str | None = None) -> Job:
        reply = await self._run("cancel", job_id, tenant or "")
        if reply == "missing":
            raise _not_found(job_id)
        return _job(_pairs(reply))

    async def events(
        self, job_id: str, after: str = "0", limit: int = 1000, wait_seconds: float = 0
    ) -> Sequence[Event]:
        stream = f"{PREFIX}events:{job_id}"
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_seconds
        with reporting_unavailable():
            rows: Any = await self._client.xrange(stream, f"({after}", "+", limit)
            while not rows and (left := deadline - clock()) > 0:
                await asyncio.sleep(min(left, _POLL_SECONDS))
                rows = await self._client.xrange(stream, f"({after}", "+", limit)
        return tuple(_event(stream_id, fields) for stream_id, fields in rows)

    async def claim(self, owner: str, lease_seconds: float) -> Claim | None:
        reply = await self._run("claim", owner, _milliseconds(lease_seconds))
        if reply is None:
            return None
        fields = _pairs(reply)
        return Claim(_job(fields), int(fields["fence"]))

    async def renew(self, job_id: str, fence: int, lease_seconds: float) -> LeaseStatus:
        return LeaseStatus(_unfenced(await self._run("renew", job_id, fence, _milliseconds(lease_seconds)), job_id))

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
            status_detail or "",
            *(_block_arguments(block) if block else ("", "", "")),
        )  # fmt: skip
        return LeaseStatus(_unfenced(reply, job_id))

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
        if (state == "failed") != (error is not None) or (state == "succeeded") != bool(files):
            raise ValueError(f"{state}: an error goes with 'failed', files go with 'succeeded'")
        reply = await self._run("finish", job_id, fence, state, _failure_json(error), json.dumps(dict(files or {})))
        if reply == "unasked":
            raise Conflict(f"nobody asked to cancel job {job_id}")
        return _job(_pairs(_unfenced(reply, job_id)))

    async def release(self, job_id: str, fence: int, *, delay_seconds: float, error: Failure | None = None) -> Job:
        reply = await self._run("release", job_id, fence, _milliseconds(delay_seconds), _failure_json(error))
        return _job(_pairs(_unfenced(reply, job_id)))

    async def reap(self, max_stalled_attempts: int = 3) -> Sequence[str]:
        return tuple(await self._run("reap", max_stalled_attempts))

    async def files(self, job_id: str) -> dict[str, str]:
        with reporting_unavailable():
            files = await self._client.hget(f"{PREFIX}job:{job_id}", "files")
        return dict(json.loads(files)) if files else {}

    async def ask_plan(self, request: PlanRequest, keep_seconds: float) -> str:
        body = request.model_dump_json()
        plan_id = _sha256(body)
        await self._run("ask_plan", plan_id, body, _milliseconds(keep_seconds))
        return plan_id

    async def claim_plan(self) -> PlanOrder | None:
        reply = await self._run("claim_plan")
        return PlanOrder(reply[0], PlanRequest.model_validate_json(reply[1])) if reply else None

    async def answer_plan(self, plan_id: str, answer: PlanAnswer) -> None:
        await self._run("answer_plan", plan_id, answer.model_dump_json(), _milliseconds(_ANSWER_SECONDS))

    async def plan_answer(self, plan_id: str, wait_seconds: float) -> PlanAnswer | None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_seconds
        with reporting_unavailable():
            while not (answer := await self._client.hget(f"{PREFIX}plan:{plan_id}", "answer")):
                if (left := deadline - clock()) <= 0:
                    return None
                await asyncio.sleep(min(left, _POLL_SECONDS))
        return PlanAnswer.model_validate_json(answer)

    async def ping(self) -> None:
        with reporting_unavailable():
            memory = await self._client.info("memory")
        if (policy := memory["maxmemory_policy"]) != "noeviction":
            raise Unavailable(f"Redis may drop jobs: maxmemory-policy is {policy}, expected noeviction")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _run(self, script: str, *arguments: str | int) -> Any:
        with reporting_unavailable():
            return await self._scripts[script](keys=[PREFIX], args=arguments)


def _new_id() -> str:
    """An id that sorts by time: nanoseconds since 1970 and 64 random bits, in Crockford's base 32."""
    number = time.time_ns() << 64 | secrets.randbits(64)
    return "job_" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def _job(fields: Mapping[str, str]) -> Job:
    return Job(
        id=fields["id"],
        tenant=fields["tenant"],
        state=JobState(fields["state"]),
        status_detail=fields["status_detail"] or None,
        spec=JobSpec.model_validate_json(fields["spec"]),
        priority=int(fields["priority"]),
        progress=Progress.model_validate_json(fields.get("progress", "{}")),
        attempt=int(fields["attempt"]),
        failures=int(fields["failures"]),
        cancel_requested="cancel" in fields,
        error=Failure.model_validate_json(fields["error"]) if fields["error"] else None,
        created_at=_time(fields["created_at"]),
        started_at=_time(fields["started_at"]) if "started_at" in fields else None,
        finished_at=_time(fields["finished_at"]) if "finished_at" in fields else None,
        version=int(fields["version"]),
    )


def _event(stream_id: str, fields: Mapping[str, str]) -> Event:
    at = _time(stream_id.partition("-")[0])
    return _EVENT.validate_python({"id": stream_id, "at": at, "type": fields["type"], **json.loads(fields["data"])})


def _block_arguments(block: BlockRecord) -> tuple[int, str, str]:
    event = {"index": block.index, "sha256": block.sha256, "bytes": block.bytes, "relative_error": block.relative_error}
    return block.index, canonical_json(asdict(block)), canonical_json(event)


def _unfenced(reply: Any, job_id: str) -> Any:
    if reply == "fenced":
        raise Fenced(f"job {job_id}: the lease of this attempt was lost, or the job has ended")
    return reply


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id!r}")


def _failure_json(error: Failure | None) -> str:
    return error.model_dump_json() if error else ""


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
