"""Claims jobs one after the other and sees each through: starts its driver, renews its lease, ends it.

The dispatcher holds no state: kill it at any time. Its driver dies with it, the lease runs out, and
whoever claims the job next goes on from the published blocks.
"""

import asyncio
import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitpress.cluster import DispatcherReport
from bitpress.errors import BitpressError, Cancelled, SourceNotAllowed, StoreError, Unavailable
from bitpress.plans import PlanAnswer, PlanRequest
from bitpress_service import logs, tracing
from bitpress_service.jobstore import Claim, Fenced, JobStore, LeaseStatus
from bitpress_service.sources import Sources
from bitpress_workers.devices import DeviceWatch
from bitpress_workers.driver import DRAIN, RESULT, Order, Result
from bitpress_workers.failure import crash, judge
from bitpress_workers.scratch import make_scratch, sweep_scratch

log = logging.getLogger(__name__)

PLAN_SECONDS = 100.0  # the longest that a plan may take; whoever waits for it gives up later
REPORT_SECONDS = 5.0
GRACE_SECONDS = 60.0  # a driver notices a pause or a cancel before its next linear; past this it is killed
LAST_WORDS = 2000


@dataclass
class Dispatcher:
    """One claim at a time: the job in hand may use all devices.

    hurry: set beside `stop`, the job in hand is given back at once, without its unfinished block.
    """

    store: JobStore
    redis_url: str
    storage_url: str
    ray_address: str
    logs: Path
    sources: Sources = field(default_factory=Sources)
    lease_seconds: float = 15.0
    stall_seconds: float = 1800.0
    device_memory_gib: float | None = None
    drain_seconds: float = 60.0
    poll_seconds: float = 0.5
    driver_command: Sequence[str] = (sys.executable, "-P", "-m", "bitpress_workers", "drive")
    owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _in_hand: Claim | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; the job in hand is then given back with its published blocks.

        The block in hand gets `drain_seconds` to be one of them.
        """
        sweep_scratch()
        devices = DeviceWatch(self.ray_address)
        beside = {  # a job may take hours
            asyncio.create_task(task) for task in (self._answer_plans(stop), devices.run(), self._report(devices, stop))
        }
        try:
            await self._run_jobs(devices, stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)

    async def _report(self, devices: DeviceWatch, stop: asyncio.Event) -> None:
        """Say again and again what this dispatcher is doing."""
        while not stop.is_set():
            job = self._in_hand.job if self._in_hand else None
            report = DispatcherReport(
                owner=self.owner,
                cluster=self.ray_address,
                busy=job is not None,
                devices=devices.free_of(job.spec.devices if job else None, job is not None),
            )
            try:
                await self.store.report(report, REPORT_SECONDS * 4)
            except Unavailable as error:
                log.warning("nobody learns of this dispatcher: %s", error)
            await _sleep(REPORT_SECONDS, stop)

    async def _run_jobs(self, devices: DeviceWatch, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self.store.reap()
                self._in_hand = await self.store.claim(self.owner, self.lease_seconds, devices.capacity)
                if self._in_hand is None:
                    await _sleep(self.poll_seconds, stop)
                    continue
                job = self._in_hand.job
                subject: dict[str, str | int] = {"job": job.id, "attempt": job.attempt}
                try:
                    with logs.about(**subject), tracing.span("attempt", self._in_hand.traceparent, **subject):
                        await self._attempt(self._in_hand, stop)
                finally:
                    self._in_hand = None
            except Unavailable as error:
                log.warning("the job store is unavailable: %s", error)
                await _sleep(self.poll_seconds * 4, stop)
            except Fenced as error:
                log.warning("%s", error)

    async def _answer_plans(self, stop: asyncio.Event) -> None:
        """Make one plan after the other, each by a process of its own."""
        while not stop.is_set():
            try:
                order = await self.store.claim_plan()
                if order is None:
                    await _sleep(self.poll_seconds, stop)
                else:
                    await self.store.answer_plan(order.id, await self._plan(order.request))
            except (Unavailable, OSError, ValueError) as error:  # a job in hand must not end for that
                log.warning("a plan was not made: %s", error)
                await _sleep(self.poll_seconds * 4, stop)

    async def _plan(self, request: PlanRequest) -> PlanAnswer:
        try:
            self.sources.check(request.spec)
        except SourceNotAllowed as error:
            return PlanAnswer.refusal(error)
        planner = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "bitpress_workers", "plan", "--ray-address", self.ray_address,
            stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(planner.communicate(request.model_dump_json().encode()), PLAN_SECONDS)
        except TimeoutError:
            return PlanAnswer.refusal(Unavailable(f"the plan was not made within {PLAN_SECONDS:.0f} s"))
        finally:
            await _kill(planner)
        if planner.returncode:
            return PlanAnswer.refusal(BitpressError(f"the planner ended with exit code {planner.returncode}"))
        return PlanAnswer.model_validate_json(output)

    async def _attempt(self, claim: Claim, stop: asyncio.Event) -> None:
        log.info("the attempt starts")
        try:
            scratch = make_scratch()
        except OSError as error:
            await self._conclude(claim, Result(code=StoreError.code, message=f"no scratch directory: {error}"), stop)
            return
        try:
            driver = await self._start(claim, scratch)
            try:
                ended = await self._watch(claim, driver, scratch, stop)
            finally:
                await _kill(driver)
            result = self._outcome(claim, driver, scratch) if ended else Result(released=True)
            await self._conclude(claim, result, stop)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def _start(self, claim: Claim, scratch: Path) -> Process:
        order = Order(
            job=claim.job,
            fence=claim.fence,
            redis_url=self.redis_url,
            storage_url=self.storage_url,
            ray_address=self.ray_address,
            device_memory_gib=self.device_memory_gib,
            scratch=str(scratch),
            dispatcher_pid=os.getpid(),
            stall_seconds=self.stall_seconds,
            traceparent=tracing.traceparent(),
            sources=self.sources,
        )
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_path(claim).open("ab") as output:
            os.fchmod(output.fileno(), 0o600)
            driver = await asyncio.create_subprocess_exec(
                *self.driver_command, stdin=PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert driver.stdin is not None
        driver.stdin.write(order.model_dump_json().encode())
        driver.stdin.close()
        return driver

    async def _watch(self, claim: Claim, driver: Process, scratch: Path, stop: asyncio.Event) -> bool:
        """Renew the lease until the driver ends (True), or has to be ended (False).

        Raises Fenced when the job has become another's.
        """
        clock = asyncio.get_running_loop().time
        exited, stopping, hurried = (
            asyncio.ensure_future(wait) for wait in (driver.wait(), stop.wait(), self.hurry.wait())
        )
        drained_by = asked_by = math.inf
        try:
            while True:
                news = {exited, hurried} if stopping.done() else {exited, hurried, stopping}
                pause = min(self.lease_seconds / 3, max(drained_by - clock(), 0))
                await asyncio.wait(news, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if exited.done():
                    return True
                if stopping.done() and drained_by == math.inf:
                    (scratch / DRAIN).touch()
                    drained_by = clock() + self.drain_seconds
                idle = await self._renew(claim) is LeaseStatus.OK
                asked_by = math.inf if idle else min(asked_by, clock() + GRACE_SECONDS)
                if hurried.done() or clock() >= min(drained_by, asked_by):
                    return False
        finally:
            exited.cancel()
            stopping.cancel()
            hurried.cancel()

    async def _renew(self, claim: Claim) -> LeaseStatus:
        try:
            return await self.store.renew(claim.job.id, claim.fence, self.lease_seconds)
        except Unavailable as error:
            # The driver goes on; if the store comes back too late, the lease is lost and both are fenced.
            log.warning("the lease is not renewed: %s", error)
            return LeaseStatus.OK

    def _outcome(self, claim: Claim, driver: Process, scratch: Path) -> Result:
        path = scratch / RESULT
        if path.exists():
            return Result.model_validate_json(path.read_text())
        words = self._log_path(claim).read_text(errors="replace")[-LAST_WORDS:].strip()
        error = crash(driver.returncode or 0, words)
        return Result(code=error.code, message=error.message)

    async def _conclude(self, claim: Claim, result: Result, stop: asyncio.Event) -> None:
        """Write down how the attempt ended; hours of work must not be lost to a store that is away for a while."""
        while True:
            try:
                await self._write(claim, result)
            except Unavailable as error:
                if stop.is_set():
                    raise
                log.warning("the end is not recorded yet: %s", error)
                await _sleep(self.poll_seconds * 4, stop)
            else:
                log.info("the attempt ended: %s", result.outcome)
                return

    async def _write(self, claim: Claim, result: Result) -> None:
        job_id, fence, error = claim.job.id, claim.fence, result.error()
        if result.released:
            await self.store.release(job_id, fence, delay_seconds=0.0)
        elif error is None:
            await self.store.finish(job_id, fence, state="succeeded", files=result.files)
        elif isinstance(error, Cancelled):
            await self.store.finish(job_id, fence, state="cancelled")
        else:
            # The job as it is now: blocks published by this attempt have cleared the failures before it.
            verdict = judge(await self.store.get(job_id), error)
            if verdict.retry_after_seconds is None:
                await self.store.finish(job_id, fence, state="failed", error=verdict.failure, files=result.files)
            else:
                delay = verdict.retry_after_seconds
                await self.store.release(job_id, fence, delay_seconds=delay, error=verdict.failure)

    def _log_path(self, claim: Claim) -> Path:
        return self.logs / f"{claim.job.id}-{claim.job.attempt}.log"


async def _kill(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended, and this loop is yet to hear of it
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or less when `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
