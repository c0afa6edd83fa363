"""Plans that are asked for and answered, over Redis."""

import asyncio

from pydantic import TypeAdapter

from bitpress.plans import AnyPlanRequest, PlanAnswer, PlanRequest, SweepPlanRequest
from bitpress_service.jobstore import PlanOrder
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import Scripts, milliseconds, sha256

_REQUEST: TypeAdapter[PlanRequest | SweepPlanRequest] = TypeAdapter(AnyPlanRequest)
_POLL_SECONDS = 0.2
# A plan's answer is there for all who wait, and for one who repeats a request whose reply was lost.
_ANSWER_SECONDS = 5.0


class RedisPlans(Scripts):
    """Plans over Redis."""

    async def ask_plan(self, request: PlanRequest | SweepPlanRequest, keep_seconds: float) -> str:
        body = request.model_dump_json()
        plan_id = sha256(body)
        await self._run("ask_plan", plan_id, body, milliseconds(keep_seconds))
        return plan_id

    async def claim_plan(self) -> PlanOrder | None:
        reply = await self._run("claim_plan")
        return PlanOrder(reply[0], _REQUEST.validate_json(reply[1])) if reply else None

    async def answer_plan(self, plan_id: str, answer: PlanAnswer) -> None:
        await self._run("answer_plan", plan_id, answer.model_dump_json(), milliseconds(_ANSWER_SECONDS))

    async def plan_answer(self, plan_id: str, wait_seconds: float) -> PlanAnswer | None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait_seconds
        with reporting_unavailable():
            while not (answer := await self._client.hget(f"{PREFIX}plan:{plan_id}", "answer")):
                if (left := deadline - clock()) <= 0:
                    return None
                await asyncio.sleep(min(left, _POLL_SECONDS))
        return PlanAnswer.model_validate_json(answer)
