"""Claims jobs one after the other, the members of a sweep together, and sees them through: starts their driver,
renews their leases, writes down how each ends.

The dispatcher holds no state: kill it at any time. Its driver dies with it, the lease runs out, and
whoever claims the job next goes on from the published blocks.
"""

import asyncio
import logging
import math
import os
import shutil
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitpress.cluster import DispatcherReport
from bitpress.errors import Cancelled, StoreError, Unavailable, WorkerLost
from bitpress_service import logs, tracing
from bitpress_service.jobstore import Claim, Fenced, JobStore, LeaseStatus
from bitpress_service.sources import Sources
from bitpress_workers.children import kill, sleep
from bitpress_workers.devices import DeviceWatch
from bitpress_workers.driver import DRAIN, Assignment, Order, Result, pulse_in, result_of
from bitpress_workers.failure import crash, judge
from bitpress_workers.plan_desk import PlanDesk
from bitpress_workers.pulse import Listener
from bitpress_workers.scratch import make_scratch, sweep_scratch

log = logging.getLogger(__name__)

REPORT_SECONDS = 5.0
GRACE_SECONDS = 60.0  # a driver notices a pause or a cancel before its next linear; past this it is killed
LAST_WORDS = 2000


@dataclass
class Dispatcher:
    """One claim at a time: what is in hand may use all devices.

    hurry: set beside `stop`, what is in hand is given back at once, without its unfinished block.
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
    _in_hand: dict[str, Claim] = field(default_factory=dict)  # that have not ended, by job

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; what is in hand is then given back with its published blocks.

        The block in hand gets `drain_seconds` to be one of them.
        """
        sweep_scratch()
        devices = DeviceWatch(self.ray_address)
        plans = PlanDesk(self.store, self.ray_address, self.sources, self.poll_seconds)
        beside = {  # a job may take hours
            asyncio.create_task(task) for task in (plans.run(stop), devices.run(), self._report(devices, stop))
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
            job = next((claim.job for claim in self._in_hand.values()), None)
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
            await sleep(REPORT_SECONDS, stop)

    async def _run_jobs(self, devices: DeviceWatch, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self.store.reap()
                claim = await self.store.claim(self.owner, self.lease_seconds, devices.capacity)
                if claim is None:
                    await sleep(self.poll_seconds, stop)
                    continue
                self._in_hand = {each.job.id: each for each in claim.group}
                subject = _subject(claim)
                try:
                    with logs.about(**subject), tracing.span("attempt", claim.traceparent, **subject):
                        await self._attempt(claim, stop)
                finally:
                    self._in_hand = {}
            except Unavailable as error:
                log.warning("the job store is unavailable: %s", error)
                await sleep(self.poll_seconds * 4, stop)

    async def _attempt(self, claim: Claim, stop: asyncio.Event) -> None:
        log.info("the attempt starts" + (f", with {len(claim.others)} more of its sweep" if claim.others else ""))
        try:
            scratch = make_scratch()
        except OSError as error:
            failed = Result(code=StoreError.code, message=f"no scratch directory: {error}")
            await self._conclude(dict.fromkeys(self._in_hand, failed), stop)
            return
        try:
            driver = await self._start(claim, scratch)
            try:
                ended_by_us = await self._watch(driver, scratch, stop)
            finally:
                await kill(driver)
            rest = ended_by_us or self._crash(claim, driver)
            await self._conclude(dict.fromkeys(self._in_hand, rest) | self._results(scratch), stop)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def _start(self, claim: Claim, scratch: Path) -> Process:
        order = Order(
            jobs=tuple(Assignment(job=each.job, fence=each.fence) for each in claim.group),
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

    async def _watch(self, driver: Process, scratch: Path, stop: asyncio.Event) -> Result | None:
        """Renew the leases until the driver ends, or has to be ended; jobs may end on the way.

        Returns what becomes of the jobs in hand when it has to be ended.
        """
        listener = Listener(pulse_in(scratch).path)
        clock = asyncio.get_running_loop().time
        exited, stopping, hurried = (
            asyncio.ensure_future(wait) for wait in (driver.wait(), stop.wait(), self.hurry.wait())
        )
        drained_by = math.inf
        asked_by: dict[str, float] = {}
        try:
            while True:
                news = {exited, hurried} if stopping.done() else {exited, hurried, stopping}
                pause = min(self.lease_seconds / 3, max(drained_by - clock(), 0))
                await asyncio.wait(news, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if exited.done():
                    return None
                if stopping.done() and drained_by == math.inf:
                    (scratch / DRAIN).touch()
                    drained_by = clock() + self.drain_seconds
                results = self._results(scratch, draining=stopping.done())
                if len(results) < len(self._in_hand):  # else the driver is about to end, and its devices are not free
                    await self._conclude(results, stop)
                asked = {job_id for job_id in list(self._in_hand) if await self._renew(job_id) is not LeaseStatus.OK}
                asked_by = {job_id: asked_by.get(job_id, clock() + GRACE_SECONDS) for job_id in asked}
                late = {job_id for job_id, end in asked_by.items() if clock() >= end and job_id in self._in_hand}
                if hurried.done() or clock() >= drained_by or late == set(self._in_hand):
                    return Result(released=True)
                if listener.silence() > self.stall_seconds:
                    return Result(
                        code=WorkerLost.code, message=f"the driver stood still for {self.stall_seconds:.0f} s"
                    )
                # The driver may be busy with the others: it is shut out of these, and drops them at its next write.
                await self._conclude(dict.fromkeys(late, Result(released=True)), stop)
        finally:
            exited.cancel()
            stopping.cancel()
            hurried.cancel()

    async def _renew(self, job_id: str) -> LeaseStatus:
        """Keep a job; one that has become another's is in hand no more."""
        try:
            return await self.store.renew(job_id, self._in_hand[job_id].fence, self.lease_seconds)
        except Unavailable as error:
            # The driver goes on; if the store comes back too late, the lease is lost and both are fenced.
            log.warning("the lease is not renewed: %s", error)
        except Fenced as error:
            log.warning("%s", error)
            del self._in_hand[job_id]
        return LeaseStatus.OK

    def _results(self, scratch: Path, *, draining: bool = False) -> dict[str, Result]:
        """How jobs in hand have ended. While others are drained, those that are released wait for them:
        whoever takes over is to have them together."""
        found = {
            job_id: Result.model_validate_json(path.read_text())
            for job_id in self._in_hand
            if (path := result_of(scratch, job_id)).exists()
        }
        return {job_id: result for job_id, result in found.items() if not (draining and result.released)}

    def _crash(self, claim: Claim, driver: Process) -> Result:
        words = self._log_path(claim).read_text(errors="replace")[-LAST_WORDS:].strip()
        error = crash(driver.returncode or 0, words)
        return Result(code=error.code, message=error.message)

    async def _conclude(self, results: Mapping[str, Result], stop: asyncio.Event) -> None:
        """Write down how jobs ended; hours of work must not be lost to a store that is away for a while."""
        for job_id, result in results.items():
            claim = self._in_hand[job_id]
            with logs.about(**_subject(claim)):
                await self._record_end(claim, result, stop)
            del self._in_hand[job_id]

    async def _record_end(self, claim: Claim, result: Result, stop: asyncio.Event) -> None:
        while True:
            try:
                await self._write(claim, result)
            except Unavailable as error:
                if stop.is_set():
                    raise
                log.warning("the end is not recorded yet: %s", error)
                await sleep(self.poll_seconds * 4, stop)
            except Fenced as error:
                log.warning("%s", error)
                return
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


def _subject(claim: Claim) -> dict[str, str | int]:
    return {"job": claim.job.id, "attempt": claim.job.attempt}
