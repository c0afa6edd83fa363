"""Plans: what a job would need and cost. A dispatcher makes them; this process never sees a model."""

from typing import Annotated

from fastapi import APIRouter, Body

from bitpress.errors import Unavailable
from bitpress.plans import AnyPlanRequest, PlanReport, SweepPlanReport
from bitpress_service.auth import KeyedRoute
from bitpress_service.routes.dependencies import AllowedSources, Jobs, JobWriter

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=KeyedRoute)

WAIT_SECONDS = 30.0  # well below the time-outs of clients and proxies
KEEP_SECONDS = 120.0  # a request that is repeated meanwhile joins the plan that is being made


@router.post("")
async def plan(
    request: Annotated[AnyPlanRequest, Body()], _: JobWriter, jobs: Jobs, sources: AllowedSources
) -> PlanReport | SweepPlanReport:
    """Plan a job, or the members of a sweep together: memory, operations, bytes, time, size of the artifact.

    Refused as the job would be.

    The same request again while its plan is being made waits for that plan.
    """
    sources.check(request.spec)
    plan_id = await jobs.ask_plan(request, KEEP_SECONDS)
    answer = await jobs.plan_answer(plan_id, WAIT_SECONDS)
    if answer is None:
        raise Unavailable(f"no dispatcher has made the plan within {WAIT_SECONDS:.0f} s; is one running?")
    return answer.result()
