"""POST /v1/plans over a real Redis; the test plays the dispatcher."""

import asyncio
from typing import Any

import pytest
from running_api import Api
from service_helpers import job_spec

from bitpress.errors import CheckpointError, OutOfMemory, UnsupportedModel
from bitpress.plans import PlanAnswer, PlanRequest
from bitpress_service.routes import plans

BODY: dict[str, Any] = job_spec().model_dump(mode="json")


@pytest.mark.parametrize("error", [OutOfMemory, CheckpointError, UnsupportedModel])
async def test_a_refusal_has_the_code_that_the_job_would_end_with(api: Api, error: type[OutOfMemory]) -> None:
    asked = asyncio.create_task(api.client.post("/v1/plans", json=BODY))
    while (order := await api.jobs.claim_plan()) is None:
        await asyncio.sleep(0.02)
    assert order.request == PlanRequest.of(job_spec())
    await api.jobs.answer_plan(order.id, PlanAnswer.refusal(error("it needs 3 GiB")))
    response = await asked
    assert (response.status_code, response.json()["code"]) == (422, error.code)
    assert response.json()["detail"] == "it needs 3 GiB"


async def test_without_a_dispatcher_the_service_is_unavailable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "WAIT_SECONDS", 0.3)
    response = await api.client.post("/v1/plans", json=BODY)
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert "no dispatcher" in response.json()["detail"]
    assert response.headers["Retry-After"]


async def test_a_bad_request_is_refused_before_anything_is_queued(api: Api) -> None:
    devices = {"kind": "tpu", "count": 0, "memory_gib": 1}
    response = await api.client.post("/v1/plans", json=BODY | {"devices_like": devices})
    assert (response.status_code, response.json()["code"]) == (422, "invalid-job")
    assert {error["pointer"] for error in response.json()["errors"]} == {"/devices_like/kind", "/devices_like/count"}
    assert await api.jobs.claim_plan() is None


async def test_a_plan_takes_a_key_that_may_submit(api: Api) -> None:
    reader = await api.as_tenant("other", "jobs:read")
    assert (await api.client.post("/v1/plans", json=BODY, headers=reader)).status_code == 403
    assert await api.jobs.claim_plan() is None
