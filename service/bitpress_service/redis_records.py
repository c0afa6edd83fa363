"""How jobs and what belongs to them lie in Redis, and the one way to run the scripts that change them."""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import Redis

from bitpress.errors import NotFound
from bitpress.jobs import Event, Failure, Job, JobSpec, JobState, Progress, canonical_json
from bitpress_service.jobstore import BlockRecord, Fenced
from bitpress_service.redis_client import PREFIX, reporting_unavailable

_LUA = Path(__file__).parent / "lua"
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Scripts:
    """A Redis 6.2 or newer, or a Valkey, and the scripts of `lua/`; `lua/common.lua` lists the keys."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        common = (_LUA / "common.lua").read_text()
        self._scripts = {
            path.stem: client.register_script(common + path.read_text())
            for path in _LUA.glob("*.lua")
            if path.stem != "common"
        }

    async def _run(self, script: str, *arguments: str | int) -> Any:
        with reporting_unavailable():
            return await self._scripts[script](keys=[PREFIX], args=arguments)


def new_id(kind: str = "job") -> str:
    """An id that sorts by time: nanoseconds since 1970 and 64 random bits, in Crockford's base 32."""
    number = time.time_ns() << 64 | secrets.randbits(64)
    return f"{kind}_" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def created_at(job_id: str) -> int:
    """Milliseconds since 1970 of the moment in an id. Raises ValueError for what `new_id` does not make."""
    number = 0
    for digit in job_id.removeprefix("job_"):
        number = number << 5 | _CROCKFORD.index(digit)
    return (number >> 64) // 1_000_000


def job_of(fields: Mapping[str, str]) -> Job:
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
        cancel_requested=fields.get("asked") == "cancel",
        error=Failure.model_validate_json(fields["error"]) if fields["error"] else None,
        created_at=time_of(fields["created_at"]),
        started_at=time_of(fields["started_at"]) if "started_at" in fields else None,
        finished_at=time_of(fields["finished_at"]) if "finished_at" in fields else None,
        entered_at={state: time_of(fields[at]) for state in JobState if (at := f"at:{state}") in fields},
        sweep=fields.get("sweep") or None,
        version=int(fields["version"]),
    )


def facets(spec: JobSpec) -> tuple[str, str, str, str]:
    """What lists are filtered by: method, model, name in lower case, labels (each between commas)."""
    labels = "".join(f"{label_text(key, value)}" for key, value in spec.labels.items())
    return spec.method.kind, spec.model.uri, (spec.name or "").casefold(), labels


def label_text(key: str, value: str) -> str:
    """A label as it stands in a job's `labels`, which is one of them after the other."""
    return canonical_json([key, value])


def event_of(stream_id: str, fields: Mapping[str, str]) -> Event:
    at = time_of(stream_id.partition("-")[0])
    return _EVENT.validate_python({"id": stream_id, "at": at, "type": fields["type"], **json.loads(fields["data"])})


def block_arguments(block: BlockRecord) -> tuple[int, str, str]:
    event = {"index": block.index, "sha256": block.sha256, "bytes": block.bytes, "relative_error": block.relative_error}
    return block.index, canonical_json(asdict(block)), canonical_json(event)


def unfenced(reply: Any, job_id: str) -> Any:
    if reply == "fenced":
        raise Fenced(f"job {job_id}: the lease of this attempt was lost, or the job has ended")
    return reply


def not_found(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id!r}")


def failure_json(error: Failure | None) -> str:
    return error.model_dump_json() if error else ""


def pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def time_of(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
