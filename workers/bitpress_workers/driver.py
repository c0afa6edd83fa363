"""The process of one attempt of a job, or of several members of a sweep: owns Ray, the devices and the pipeline;
dies with its dispatcher.

It reads its order from standard input (an order may hold secrets, which do not belong in argv) and
leaves a Result for each job in its scratch directory, as soon as that job has ended. It records blocks and
progress itself, each write fenced; what becomes of a job is the dispatcher's decision.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import BaseModel, ConfigDict

from bitpress.errors import ERRORS, BitpressError, Cancelled, Unavailable
from bitpress.jobs import Job, Progress
from bitpress_service import logs, tracing
from bitpress_service.artifactstore import job_key
from bitpress_service.jobstore import BlockRecord, JobStore, LeaseStatus
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_service.sources import Sources
from bitpress_workers.parent import end_with_parent
from bitpress_workers.pipeline.member import Member, Members, MembersEnded
from bitpress_workers.pipeline.publish import Released
from bitpress_workers.pipeline.run import Pipeline, Site
from bitpress_workers.pulse import Pulse
from bitpress_workers.ray_fleet import RaySession

log = logging.getLogger(__name__)

DRAIN = "drain"  # a file of this name in the scratch directory: end with the block in hand
OUTAGE_SECONDS = 60.0


class Assignment(BaseModel):
    """A job, and the fence of its attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    fence: int


class Order(BaseModel):
    """What a driver is told; of several jobs, that they are members of one sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: tuple[Assignment, ...]
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


def result_of(scratch: Path, job_id: str) -> Path:
    """Where a job's Result is left."""
    return scratch / f"{job_id}.json"


def pulse_in(scratch: Path) -> Pulse:
    """The sign that the driver gets on."""
    return Pulse(scratch / "pulse")


@dataclass
class JobRecorder:
    """Records one job's progress in the job store, from this thread into the store's event loop.

    How the job ended is left in the directory `scratch`, where also stands that the attempt is to end early.
    """

    portal: BlockingPortal
    store: JobStore
    job: Job
    fence: int
    scratch: Path
    files: dict[str, str] = field(default_factory=dict)
    has_ended: bool = False
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
        # The members of a sweep take turns, which begin with their progress.
        logs.whole_process_about(
            job=self.job.id,
            attempt=self.job.attempt,
            block=progress.blocks_done if progress.phase == "calibrating" else None,
        )
        self._record(progress=progress)
        if progress.phase in _NOTHING_IN_HAND:
            self._check_drain()

    def log(self, message: str) -> None:
        with logs.about(job=self.job.id, attempt=self.job.attempt):  # no matter whose turn it is
            log.info("%s", message)
        self._record(log=message)

    def waiting(self, reason: str) -> None:
        self._record(status_detail=reason)

    def finish(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    def ended(self, error: BitpressError | None) -> None:
        if isinstance(error, Released):
            result = Result(released=True)
        else:
            result = Result(files=self.files, code=error and error.code, message=error.message if error else "")
        path = result_of(self.scratch, self.job.id)
        path.with_suffix(".part").write_text(result.model_dump_json())
        path.with_suffix(".part").rename(path)
        self.has_ended = True

    def _check_drain(self) -> None:
        if (self.scratch / DRAIN).exists():
            raise Released("the dispatcher is about to stop")

    def _record(self, **what: Any) -> None:
        pulse_in(self.scratch).beat()  # also of one who waits and says so
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


def drive(order: Order) -> bool:
    """Run one attempt, and return whether all jobs succeeded. Never raises for what is a job's fault."""
    pulse_in(Path(order.scratch)).follow(threading.get_ident())
    with start_blocking_portal() as portal:
        store = portal.call(_connect, order.redis_url)
        recorders = [JobRecorder(portal, store, each.job, each.fence, Path(order.scratch)) for each in order.jobs]
        try:
            return _run(order, recorders)
        except BitpressError as error:
            _end_all(recorders, error)
        except Exception as error:
            # A defect of ours: the whole story goes to the attempt's log, one line of it to the user.
            log.exception("the attempt ended by a defect")
            _end_all(recorders, BitpressError(f"{type(error).__name__}: {error}"))
        finally:
            portal.call(store.aclose)
    return False


def _run(order: Order, recorders: Sequence[JobRecorder]) -> bool:
    spec = order.jobs[0].job.spec  # the members of a sweep differ in their methods alone
    order.sources.check(spec)
    members = Members([_member(number, recorder) for number, recorder in enumerate(recorders)])
    try:
        members.log(f"starting Ray ({order.ray_address})")
    except MembersEnded:
        return False
    ray_dir = Path(order.scratch) / "r"  # Ray opens its directory to everybody; the one above stays shut
    watching = pulse_in(Path(order.scratch)).beat
    with RaySession(order.ray_address, spec.devices, str(ray_dir), order.stall_seconds, watching) as session:
        site = Site(
            devices=session.devices().within(order.device_memory_gib),
            make_fleet=session.make_fleet,
            store_url=order.storage_url,
            scratch=Path(order.scratch) / "work",
        )
        Pipeline(members, site).run()
    return all(member.report is not None and member.report.problem() is None for member in members.all)


def _member(number: int, recorder: JobRecorder) -> Member:
    job = recorder.job
    return Member(number, job.spec, partial(job_key, job.tenant, job.id, recorder.fence), recorder)


def _end_all(recorders: Sequence[JobRecorder], error: BitpressError) -> None:
    """What is not the fault of one job ends all that have not ended."""
    for recorder in recorders:
        if not recorder.has_ended:
            recorder.ended(error)


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
    first = order.jobs[0].job
    subject: dict[str, str | int] = {"job": first.id, "attempt": first.attempt}
    logs.whole_process_about(**subject)
    with tracing.span("drive", order.traceparent, **subject):
        return 0 if drive(order) else 1
