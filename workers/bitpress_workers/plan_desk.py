"""Answers plans that are asked for, beside the jobs: one after the other, each made by a process of its own."""

import asyncio
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass

from bitpress.errors import BitpressError, SourceNotAllowed, Unavailable
from bitpress.plans import PlanAnswer, PlanRequest, SweepPlanRequest
from bitpress_service.jobstore import JobStore
from bitpress_service.sources import Sources
from bitpress_workers.children import kill, sleep

log = logging.getLogger(__name__)

PLAN_SECONDS = 100.0  # the longest that a plan may take; whoever waits for it gives up later


@dataclass(frozen=True)
class PlanDesk:
    """Plans are for the devices at a Ray address; what `sources` does not allow is refused."""

    store: JobStore
    ray_address: str
    sources: Sources
    poll_seconds: float

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        while not stop.is_set():
            try:
                order = await self.store.claim_plan()
                if order is None:
                    await sleep(self.poll_seconds, stop)
                else:
                    await self.store.answer_plan(order.id, await self._plan(order.request))
            except (Unavailable, OSError, ValueError) as error:  # a job in hand must not end for that
                log.warning("a plan was not made: %s", error)
                await sleep(self.poll_seconds * 4, stop)

    async def _plan(self, request: PlanRequest | SweepPlanRequest) -> PlanAnswer:
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
            await kill(planner)
        if planner.returncode:
            return PlanAnswer.refusal(BitpressError(f"the planner ended with exit code {planner.returncode}"))
        return PlanAnswer.model_validate_json(output)
