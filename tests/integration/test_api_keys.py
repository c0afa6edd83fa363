"""Keys, rates and quotas over HTTP; and no endpoint of the OpenAPI document shows one tenant what is another's."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from running_api import Api, serving
from service_helpers import job_spec
from test_api_jobs import problem

from bitpress.keys import SCOPES
from bitpress_service.settings import Settings

SPEC = job_spec().model_dump(mode="json")
# What a request needs beside its path, by operation; everything else of the document is asked as it stands.
BODIES = {"patch": {"name": "mine now"}, "post": {}}
PUBLIC = {"/problems/{code}", "/livez", "/readyz", "/metrics", "/v1/methods", "/v1/methods/{kind}"}


async def operator(api: Api) -> dict[str, str]:
    return await api.as_tenant("operator", "admin")


async def test_a_key_is_made_used_listed_and_revoked(api: Api) -> None:
    admin = await operator(api)
    body = {"tenant": "acme", "name": "CI", "scopes": ["jobs:read"]}
    response = await api.client.post("/v1/keys", json=body, headers=admin)
    assert response.status_code == 201
    issued = response.json()
    headers = {"Authorization": f"Bearer {issued['key']}"}
    assert (await api.client.get("/v1/jobs", headers=headers)).json()["data"] == []
    problem(await api.client.post("/v1/jobs", json=SPEC, headers=headers), 403, "forbidden")
    listed = (await api.client.get("/v1/keys", headers=admin)).json()["data"]
    assert issued["key"] not in json.dumps(listed)
    (record,) = [record for record in listed if record["id"] == issued["id"]]
    assert (record["tenant"], record["scopes"]) == ("acme", ["jobs:read"]) and record["last_used_at"]
    assert (await api.client.delete(f"/v1/keys/{issued['id']}", headers=admin)).status_code == 204
    problem(await api.client.get("/v1/jobs", headers=headers), 401, "unauthorized")
    problem(await api.client.delete(f"/v1/keys/{issued['id']}", headers=admin), 404, "not-found")


@pytest.mark.parametrize(
    "change", [{"tenant": "A/B"}, {"tenant": ""}, {"scopes": []}, {"scopes": ["all"]}, {"expires_at": "tomorrow"}]
)
async def test_a_key_that_cannot_be_is_refused(api: Api, change: dict[str, Any]) -> None:
    response = await api.client.post("/v1/keys", json={"tenant": "acme"} | change, headers=await operator(api))
    problem(response, 422, "invalid-request")


async def test_a_key_that_has_expired_already_is_refused(api: Api) -> None:
    ended = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    body = {"tenant": "acme", "expires_at": ended}
    problem(await api.client.post("/v1/keys", json=body, headers=await operator(api)), 422, "invalid-request")


async def test_keys_are_the_operators_business(api: Api) -> None:
    for method, path in (("POST", "/v1/keys"), ("GET", "/v1/keys"), ("DELETE", "/v1/keys/key_x")):
        user = await api.as_tenant("local", *(scope for scope in SCOPES if scope != "admin"))
        problem(await api.client.request(method, path, json={"tenant": "local"}, headers=user), 403, "forbidden")


async def test_a_mistyped_key_is_called_that(api: Api) -> None:
    key = (await api.as_tenant("acme"))["Authorization"]
    mistyped = key[:-1] + ("0" if key[-1] != "0" else "1")
    body = problem(await api.client.get("/v1/jobs", headers={"Authorization": mistyped}), 401, "unauthorized")
    assert "checksum" in body["detail"]


async def test_who_asks_too_often_is_told_when_to_come_back(redis_url: str, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, redis_url=redis_url, requests_per_second=0.01, request_burst=2)
    async with serving(settings) as api:
        left = [(await api.client.get("/v1/jobs")).headers["ratelimit"] for _ in range(2)]
        assert [text.split(";")[1] for text in left] == ["r=1", "r=0"]
        response = await api.client.get("/v1/jobs")
        problem(response, 429, "too-many-requests")
        assert 90 <= int(response.headers["retry-after"]) <= 100
        assert response.headers["ratelimit-policy"] == '"key";q=2;w=200'
        assert (await api.client.get("/v1/jobs", headers=await api.as_tenant("other"))).status_code == 200
        assert (await api.client.get("/v1/methods")).status_code == 200


async def test_a_tenants_waiting_jobs_are_limited(redis_url: str, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, redis_url=redis_url, waiting_jobs_per_tenant=2)
    async with serving(settings) as api:
        mine = await api.as_tenant(f"quota-{tmp_path.name}".lower())
        headers = mine | {"Idempotency-Key": "first"}
        first = (await api.client.post("/v1/jobs", json=SPEC, headers=headers)).json()["id"]
        await api.client.post(f"/v1/jobs/{first}/pause", headers=mine)
        second = (await api.client.post("/v1/jobs", json=SPEC, headers=mine)).json()["id"]
        response = await api.client.post("/v1/jobs", json=SPEC, headers=mine)
        problem(response, 429, "too-many-jobs")
        assert response.headers["retry-after"] == "60"
        # What is said again is no new job, and another tenant's jobs do not count.
        assert (await api.client.post("/v1/jobs", json=SPEC, headers=headers)).json()["id"] == first
        assert (await api.client.post("/v1/jobs", json=SPEC, headers=await api.as_tenant("other"))).status_code == 202
        await api.client.post(f"/v1/jobs/{second}/cancel", headers=mine)
        assert (await api.client.post("/v1/jobs", json=SPEC, headers=mine)).status_code == 202
        problem(await api.client.post(f"/v1/jobs/{second}/retry", headers=mine), 429, "too-many-jobs")


async def test_no_endpoint_shows_or_touches_what_is_another_tenants(api: Api) -> None:
    """Every operation of the document whose path names something is asked with another tenant's ids."""
    job = await api.succeeded_job()
    before = await api.jobs.get(job.id)
    names = {"job_id": job.id, "name": "report.json"}
    stranger = await api.as_tenant("other", *(scope for scope in SCOPES if scope != "admin"))
    asked = 0
    document = (await api.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in PUBLIC or operation.get("security") is None:
                assert path in PUBLIC, f"{method} {path} asks for no key"
                continue
            asked += "{" in path
            filled = path.format_map(_Unknown(names))
            body = BODIES.get(method)
            response = await api.client.request(method, filled, headers=stranger, **({"json": body} if body else {}))
            if "{job_id}" in path:
                assert response.status_code == 404, f"{method} {path}: {response.status_code}"
                assert response.json()["code"] == "not-found"
                unknown = await api.client.request(
                    method, filled.replace(job.id, "job_unknown"), headers=stranger, **({"json": body} if body else {})
                )
                told = response.text.replace(job.id, "job_unknown")
                assert _without_id(json.loads(told)) == _without_id(unknown.json()), f"{method} {path}"
                continue
            assert job.id not in response.text, f"{method} {path}: {response.text}"
            if "{" in path:
                assert response.status_code in (403, 404), f"{method} {path}: {response.status_code}"
    assert asked >= 12 and await api.jobs.get(job.id) == before


class _Unknown(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return f"unknown-{name}"


def _without_id(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "request_id"}
