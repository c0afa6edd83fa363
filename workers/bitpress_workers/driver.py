"""The process of one job attempt: owns Ray, the devices and one job's pipeline; dies with its dispatcher.

It reads its order from standard input (an order may hold secrets, which do not belong in argv) and
leaves a Result in its scratch directory. It records blocks and progress itself, each write fenced;
what becomes of the job is the dispatcher's decision.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import BaseModel, ConfigDict

from bitpress.artifacts import Report
from bitpress.errors import ERRORS, BitpressError, Cancelled, Unavailable
from bitpress.jobs import Job, Progress
from bitpress_service import logs, tracing
from bitpress_service.artifactstore import job_key
from bitpress_service.jobstore import BlockRecord, JobStore, LeaseStatus
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_service.sources import Sources
from bitpress_workers.parent import end_with_parent
from bitpress_workers.pipeline.run import Site, run_job
from bitpress_workers.ray_fleet import RaySession

log = logging.getLogger(__name__)

RESULT = "result.json"
DRAIN = "drain"  # a file of this name in the scratch directory: end with the block in hand
OUTAGE_SECONDS = 60.0


class Released(BitpressError):
    """The attempt ends early and in good order: the job goes to who wants it next."""

    code = "released"


class Order(BaseModel):
    """What a driver is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    fence: int
    redis_url: str
    storage_url: str
    ray_address: str
    device_memory_gib: float | None
    scratch: str
    dispatcher_pid: int
    stall_seconds: float
    traceparent: str = ""
    sources: Sources = Sources()


class Result(BaseModel):
    """How an attempt ended: object keys of the artifact's files, an error, both when the result falls short; or early
    and in good order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str] = {}
    released: bool = False
    code: str | None = None
    message: str = ""

    @property
    def outcome(self) -> str:
        return "released" if self.released else self.code or "succeeded"

    def error(self) -> BitpressError | None:
        return ERRORS.get(self.code, BitpressError)(self.message) if self.code else None


@dataclass
class JobRecorder:
    """Records one job's progress in the job store, from this thread into the store's event loop."""

    portal: BlockingPortal
    store: JobStore
    job: Job
    fence: int
    drain: Path
    files: dict[str, str] = field(default_factory=dict)
    block_begin_ns: int = field(default_factory=time.time_ns)

    def blocks(self) -> dict[int, BlockRecord]:
        return self.portal.call(self.store.blocks, self.job.id)

    def block(self, record: BlockRecord) -> None:
        log.info("block %d is published", record.index)
        tracing.past_span("block", self.block_begin_ns, {"job": self.job.id, "block": record.index})
        self.block_begin_ns = time.time_ns()
        self._record(block=record)
        self._check_drain()

    def progress(self, progress: Progress) -> None:
        logs.whole_process_about(block=progress.blocks_done if progress.phase == "calibrating" else None)
        self._record(progress=progress)
        if progress.phase in _NOTHING_IN_HAND:
            self._check_drain()

    def log(self, message: str) -> None:
        log.info("%s", message)
        self._record(log=message)

    def waiting(self, reason: str) -> None:
        self._record(status_detail=reason)

    def finish(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    def _check_drain(self) -> None:
        if self.drain.exists():
            raise Released("the dispatcher is about to stop")

    def _record(self, **what: Any) -> None:
        status = self._write(what)
        if status is LeaseStatus.CANCEL:
            raise Cancelled("the job was cancelled")
        if status is LeaseStatus.PAUSE:
            raise Released("the job was paused")

    def _write(self, what: dict[str, Any]) -> LeaseStatus:
        """Sit out a restart of the store: a block's work is worth more than a minute."""
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                return self.portal.call(partial(self.store.record, self.job.id, self.fence, **what))
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1.0)


# What is interrupted here is begun anew by the next attempt, however far it got.
_NOTHING_IN_HAND = ("preparing", "evaluating")


def drive(order: Order) -> Result:
    """Run one attempt. Never raises for what is the job's fault: that is in the Result."""
    try:
        with start_blocking_portal() as portal:
            store = portal.call(_connect, order.redis_url)
            recorder = JobRecorder(portal, store, order.job, order.fence, Path(order.scratch) / DRAIN)
            try:
                problem = _run(order, recorder).problem()
            finally:
                portal.call(store.aclose)
        if problem is None:
            return Result(files=recorder.files)
        return Result(files=recorder.files, code=problem.code, message=problem.message)
    except Released:
        return Result(released=True)
    except BitpressError as error:
        return Result(code=error.code, message=error.message)


def _run(order: Order, recorder: JobRecorder) -> Report:
    job = order.job
    order.sources.check(job.spec)
    recorder.log(f"attempt {job.attempt}: starting Ray ({order.ray_address})")
    ray_dir = Path(order.scratch) / "r"  # Ray opens its directory to everybody; the one above stays shut
    with RaySession(order.ray_address, job.spec.devices, str(ray_dir), order.stall_seconds) as session:
        site = Site(
            devices=session.devices().within(order.device_memory_gib),
            make_fleet=session.make_fleet,
            store_url=order.storage_url,
            scratch=Path(order.scratch) / "restoring",
        )
        key_of = partial(job_key, job.tenant, job.id, order.fence)
        return run_job(job.spec, key_of, recorder, site)


async def _connect(url: str) -> RedisJobStore:
    return RedisJobStore.from_url(url)


def main() -> int:
    """Entry point of `python -m bitpress_workers drive`."""
    order = Order.model_validate_json(sys.stdin.read())
    end_with_parent(signal.SIGKILL)
    if os.getppid() != order.dispatcher_pid:
        return 1  # nobody renews the lease any more
    logs.configure(Settings().log_format)
    tracing.configure("driver")
    subject: dict[str, str | int] = {"job": order.job.id, "attempt": order.job.attempt}
    logs.whole_process_about(**subject)
    try:
        with tracing.span("drive", order.traceparent, **subject):
            result = drive(order)
    except Exception as error:
        # A defect of ours: the whole story goes to the attempt's log, one line of it to the user.
        log.exception("the attempt ended by a defect")
        result = Result(code="internal", message=f"{type(error).__name__}: {error}")
    path = Path(order.scratch) / RESULT
    path.with_suffix(".part").write_text(result.model_dump_json())
    path.with_suffix(".part").rename(path)
    return 0 if result.error() is None else 1
