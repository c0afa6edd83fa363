"""Claims jobs one after the other and sees each through: starts its driver, renews its lease, ends it.

The dispatcher holds no state: kill it at any time. Its driver dies with it, the lease runs out, and
whoever claims the job next goes on from the published blocks.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitpress.errors import BitpressError, Cancelled, StoreError, Unavailable
from bitpress.plans import PlanAnswer, PlanRequest
from bitpress_service import logs, tracing
from bitpress_service.jobstore import Claim, Fenced, JobStore, LeaseStatus
from bitpress_workers.driver import RESULT, Order, Result
from bitpress_workers.failure import crash, judge

log = logging.getLogger(__name__)

PLAN_SECONDS = 100.0  # the longest that a plan may take; whoever waits for it gives up later
CANCEL_GRACE_SECONDS = 60.0  # a driver notices a cancel before its next linear; past this it is killed
LAST_WORDS = 2000
LONGEST_BASE = 12
SCRATCH = "bitpress-"


@dataclass
class Dispatcher:
    """One claim at a time: the job in hand may use all devices."""

    store: JobStore
    redis_url: str
    storage_url: str
    ray_address: str
    logs: Path
    lease_seconds: float = 15.0
    stall_seconds: float = 1800.0
    device_memory_gib: float | None = None
    poll_seconds: float = 0.5
    driver_command: Sequence[str] = (sys.executable, "-P", "-m", "bitpress_workers", "drive")
    owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; the job in hand is then given back, its published blocks kept."""
        _sweep_scratch()
        plans = asyncio.create_task(self._answer_plans(stop))  # a job may take hours
        try:
            await self._run_jobs(stop)
        finally:
            plans.cancel()
            await asyncio.wait({plans})

    async def _run_jobs(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self.store.reap()
                claim = await self.store.claim(self.owner, self.lease_seconds)
                if claim is None:
                    await _sleep(self.poll_seconds, stop)
                else:
                    subject: dict[str, str | int] = {"job": claim.job.id, "attempt": claim.job.attempt}
                    with logs.about(**subject), tracing.span("attempt", claim.traceparent, **subject):
                        await self._attempt(claim, stop)
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
        job = claim.job
        log.info("the attempt starts")
        try:
            scratch = _make_scratch()
        except OSError as error:
            await self._conclude(claim, Result(code=StoreError.code, message=f"no scratch directory: {error}"), stop)
            return
        try:
            driver = await self._start(claim, scratch)
            try:
                stopped = await self._watch(claim, driver, stop)
            finally:
                await _kill(driver)
            if stopped:
                await self.store.release(job.id, claim.fence, delay_seconds=0.0)
            else:
                await self._conclude(claim, self._outcome(claim, driver, scratch), stop)
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

    async def _watch(self, claim: Claim, driver: Process, stop: asyncio.Event) -> bool:
        """Renew the lease until the driver ends (False) or this dispatcher is to stop (True).

        Raises Fenced when the job has become another's.
        """
        exited = asyncio.ensure_future(driver.wait())
        stopping = asyncio.ensure_future(stop.wait())
        cancelled_for = 0.0
        interval = self.lease_seconds / 3
        try:
            while True:
                await asyncio.wait({exited, stopping}, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                if exited.done():
                    return False
                if stopping.done():
                    return True
                status = await self._renew(claim)
                cancelled_for += interval if status is LeaseStatus.CANCEL else 0.0
                if cancelled_for > CANCEL_GRACE_SECONDS:
                    return False
        finally:
            exited.cancel()
            stopping.cancel()

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
                log.info("the attempt ended: %s", result.code or "succeeded")
                return

    async def _write(self, claim: Claim, result: Result) -> None:
        job_id, fence, error = claim.job.id, claim.fence, result.error()
        if error is None:
            await self.store.finish(job_id, fence, state="succeeded", files=result.files)
        elif isinstance(error, Cancelled):
            await self.store.finish(job_id, fence, state="cancelled")
        else:
            # The job as it is now: blocks published by this attempt have cleared the failures before it.
            verdict = judge(await self.store.get(job_id), error)
            if verdict.retry_after_seconds is None:
                await self.store.finish(job_id, fence, state="failed", error=verdict.failure)
            else:
                delay = verdict.retry_after_seconds
                await self.store.release(job_id, fence, delay_seconds=delay, error=verdict.failure)

    def _log_path(self, claim: Claim) -> Path:
        return self.logs / f"{claim.job.id}-{claim.job.attempt}.log"


def _scratch_base() -> Path:
    """Ray puts sockets some 70 characters below an attempt's directory, and a socket's path has 107 at most."""
    base = tempfile.gettempdir()
    return Path(base if len(base) <= LONGEST_BASE else "/tmp")  # noqa: S108


def _make_scratch() -> Path:
    """A directory for one attempt that only this user may enter."""
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=_scratch_base()))


def _sweep_scratch() -> None:
    """Remove what dispatchers that were killed left behind (Linux only, where /proc says who is alive)."""
    if sys.platform != "linux":
        return
    for path in _scratch_base().glob(f"{SCRATCH}*-*"):
        pid = path.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with contextlib.suppress(FileNotFoundError):  # another dispatcher sweeps, too
                if path.stat().st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)


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
