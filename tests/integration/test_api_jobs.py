"""Jobs over HTTP: submit, replay, list, cancel; and every error as a problem document."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_api import Api, serving
from service_helpers import LEASE, block_record, job_spec

from bitpress.advice import ADVICE
from bitpress.errors import ERRORS, InvalidJob, from_problem
from bitpress.jobs import Job, JobState, parse_spec
from bitpress.sweeps import parse_submission
from bitpress_service import embedded_redis, problems
from bitpress_service.settings import Settings

SPEC = job_spec().model_dump(mode="json")


def problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "code", "advice", "request_id", "errors"}
    assert (body["status"], body["code"], body["type"]) == (status, code, f"/problems/{code}")
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    return body


def job_of(response: httpx2.Response) -> Job:
    body = response.json()
    assert body.pop("object") == "job"
    assert body.pop("urls")["self"] == f"/v1/jobs/{body['id']}"
    return Job.model_validate(body)


async def test_submit_answers_with_the_queued_job_and_its_address(api: Api) -> None:
    response = await api.client.post("/v1/jobs", json=SPEC)
    assert response.status_code == 202
    job = job_of(response)
    assert job.state is JobState.QUEUED and job.tenant == "local" and job.spec == job_spec()
    for path in (response.headers["location"], response.json()["urls"]["self"]):
        assert job_of(await api.client.get(path)) == job


async def test_the_same_idempotency_key_gives_the_same_job(api: Api) -> None:
    headers = {"Idempotency-Key": "monday's run"}
    first = await api.client.post("/v1/jobs", json=SPEC, headers=headers)
    assert "idempotent-replayed" not in first.headers
    again = await api.client.post("/v1/jobs", json=SPEC, headers=headers)
    assert again.status_code == 202 and again.headers["idempotent-replayed"] == "true"
    assert job_of(again) == job_of(first)
    other = await api.client.post("/v1/jobs", json=job_spec(bits=4).model_dump(mode="json"), headers=headers)
    problem(other, 409, "conflict")
    problem(
        await api.client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k" * 256}), 422, "invalid-request"
    )


async def test_a_bad_spec_is_refused_as_parse_spec_refuses_it(api: Api) -> None:
    bad = json.loads(json.dumps(SPEC))
    bad["method"] |= {"bits": 9, "damping": 1000}
    bad["calibration"]["dataset"] = "text.exe"
    bad["surprise"] = 1
    del bad["model"]["uri"]
    body = problem(await api.client.post("/v1/jobs", json=bad), 422, "invalid-job")
    with pytest.raises(InvalidJob) as expected:
        parse_spec(bad)
    assert body["detail"] == expected.value.message
    rebuilt = from_problem(body, 422)
    assert isinstance(rebuilt, InvalidJob) and rebuilt.details == expected.value.details
    paths = {path for path, _ in rebuilt.details}
    assert paths == {"/method/bits", "/method/damping", "/calibration/dataset", "/model/uri", "/surprise"}


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (b"", "invalid-job", 422),
        (b"null", "invalid-job", 422),
        (b'{"model": ', "invalid-job", 422),
        (b'{"model": {"uri": "\\ud800"}}', "invalid-job", 422),
        (b"[" * 60_000, "bad-request", 400),
        (b"\xff{}", "bad-request", 400),
        (b" " * 70_000, "body-too-large", 413),
    ],
)
async def test_bodies_that_are_no_spec(api: Api, body: bytes, code: str, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    problem(await api.client.post("/v1/jobs", content=body, headers=headers), status, code)


async def test_a_body_without_announced_length_is_limited_too(api: Api) -> None:
    async def endless() -> Any:
        for _ in range(20):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    problem(await api.client.post("/v1/jobs", content=endless(), headers=headers), 413, "body-too-large")


async def test_what_the_router_refuses_is_a_problem_too(api: Api) -> None:
    problem(await api.client.get("/nowhere"), 404, "not-found")
    for path, methods in (
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/x/artifacts/y/z", "GET"),
        ("/openapi.json", "GET, HEAD"),
    ):
        response = await api.client.delete(path)
        problem(response, 405, "method-not-allowed")
        assert sorted(response.headers["allow"].split(", ")) == methods.split(", ")
    body = problem(await api.client.get("/v1/jobs?limit=0&state=lost"), 422, "invalid-request")
    assert {error["pointer"] for error in body["errors"]} == {"/limit", "/state"}
    problem(await api.client.get("/v1/jobs?limit=101"), 422, "invalid-request")
    problem(await api.client.get("/v1/jobs/job_unknown"), 404, "not-found")
    problem(await api.client.post("/v1/jobs/job_unknown/cancel"), 404, "not-found")
    problem(await api.client.get("/v1/methods/magic"), 404, "not-found")


async def test_an_unexpected_error_is_a_problem_whose_secrets_are_in_the_log(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    @api.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret")

    body = problem(await api.client.get("/broken"), 500, "internal")
    assert "secret" not in json.dumps(body)
    (logged,) = [record for record in caplog.records if body["request_id"] in record.getMessage()]
    assert logged.exc_info is not None and str(logged.exc_info[1]) == "secret"


async def test_a_request_keeps_the_id_its_caller_gave_it(api: Api) -> None:
    assert (await api.client.get("/livez", headers={"X-Request-Id": "trace-7"})).headers["x-request-id"] == "trace-7"
    assert (await api.client.get("/livez", headers={"X-Request-Id": "a b"})).headers["x-request-id"].startswith("req_")


async def test_only_a_key_with_the_scope_comes_in(api: Api) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer bp_wrong"}, {"Authorization": "Basic eDp5"}):
        response = await api.client.get("/v1/jobs", headers=headers)
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    reader = await api.as_tenant("local", "jobs:read")
    assert (await api.client.get("/v1/jobs", headers=reader)).status_code == 200
    problem(await api.client.post("/v1/jobs", json=SPEC, headers=reader), 403, "forbidden")
    problem(await api.client.get("/v1/jobs/job_x/artifacts", headers=reader), 403, "forbidden")


@pytest.mark.parametrize("body", [b"{}", b'{"model": ', b"\xff{}", b" " * 70_000])
async def test_a_stranger_is_told_nothing_about_a_body(api: Api, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer bp_wrong"}
    problem(await api.client.post("/v1/jobs", content=body, headers=headers), 401, "unauthorized")
    problem(
        await api.client.post("/v1/jobs", content=body, headers=headers | {"Authorization": ""}), 401, "unauthorized"
    )


async def test_another_tenants_job_does_not_exist(api: Api) -> None:
    job = await api.succeeded_job()
    stranger = await api.as_tenant("other")
    assert (await api.client.get("/v1/jobs", headers=stranger)).json()["data"] == []
    for path in ("", "/events", "/artifacts", "/artifacts/report.json", "/report"):
        problem(await api.client.get(f"/v1/jobs/{job.id}{path}", headers=stranger), 404, "not-found")
    problem(await api.client.post(f"/v1/jobs/{job.id}/cancel", headers=stranger), 404, "not-found")


async def test_lists_come_in_pages(api: Api) -> None:
    ids = [(await api.jobs.create("local", job_spec()))[0].id for _ in range(5)]
    first = (await api.client.get("/v1/jobs", params={"limit": 3})).json()
    assert first["object"] == "list" and first["has_more"]
    second = (await api.client.get("/v1/jobs", params={"limit": 3, "after": first["next_cursor"]})).json()
    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert not second["has_more"] and second["next_cursor"] is None
    assert (await api.client.get("/v1/jobs", params={"state": "running"})).json()["data"] == []


async def test_cancel_says_whether_the_job_still_winds_down(api: Api) -> None:
    queued = (await api.client.post("/v1/jobs", json=SPEC)).json()["id"]
    response = await api.client.post(f"/v1/jobs/{queued}/cancel")
    assert (response.status_code, job_of(response).state) == (200, JobState.CANCELLED)

    running = (await api.client.post("/v1/jobs", json=SPEC)).json()["id"]
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    response = await api.client.post(f"/v1/jobs/{running}/cancel")
    assert (response.status_code, job_of(response).state) == (202, JobState.CANCELLING)
    await api.jobs.finish(running, claim.fence, state="cancelled")
    response = await api.client.post(f"/v1/jobs/{running}/cancel")
    assert (response.status_code, job_of(response).state) == (200, JobState.CANCELLED)


async def test_a_storm_of_submits_with_one_key_makes_one_job(api: Api) -> None:
    headers = {"Idempotency-Key": "storm"}
    responses = await asyncio.gather(*(api.client.post("/v1/jobs", json=SPEC, headers=headers) for _ in range(20)))
    assert len({response.json()["id"] for response in responses}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1


async def test_methods_are_listed_with_their_schemas(api: Api) -> None:
    listed = (await api.client.get("/v1/methods", headers={"Authorization": ""})).json()
    assert listed["object"] == "list"
    kinds = [method["kind"] for method in listed["data"]]
    assert kinds == ["rtn", "gptq", "spqr", "septq", "ptq161"]
    for method in listed["data"]:
        assert set(method) == {"kind", "description", "schema"} and "kind" in method["schema"]["properties"]
        assert (await api.client.get(f"/v1/methods/{method['kind']}")).json() == method


async def test_the_openapi_document_names_every_path(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert {path for path in document["paths"] if path.startswith("/v1/jobs")} == {
        "/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/pause", "/v1/jobs/{job_id}/resume", "/v1/jobs/{job_id}/retry",
        "/v1/jobs/{job_id}/artifacts", "/v1/jobs/{job_id}/artifacts/{name}", "/v1/jobs/{job_id}/report",
    }  # fmt: skip
    answers = document["paths"]["/v1/jobs"]["post"]["responses"]
    assert set(answers) == {"202", "default"} and "application/problem+json" in answers["default"]["content"]


async def test_every_kind_of_problem_says_what_to_do(api: Api) -> None:
    assert set(ERRORS) | set(problems.HTTP_CODES.values()) | {"http-error"} == set(ADVICE)
    for code, advice in ADVICE.items():
        answer = await api.client.get(f"/problems/{code}", headers={"Authorization": ""})
        assert answer.json() == {"code": code, "advice": advice} and advice.endswith(".")
    problem(await api.client.get("/problems/none"), 404, "not-found")


async def test_without_redis_the_api_says_what_is_down_and_recovers(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, redis_url=embedded_redis.start(tmp_path / "redis"))
    async with serving(settings) as api:
        job = (await api.client.post("/v1/jobs", json=SPEC)).json()
        assert (await api.client.get("/readyz")).json() == {"status": "ok"}
        embedded_redis.stop(tmp_path / "redis")

        for response in (await api.client.get("/readyz"), await api.client.post("/v1/jobs", json=SPEC)):
            problem(response, 503, "unavailable")
            assert response.headers["retry-after"] == "1"
        body = (await api.client.get("/readyz")).json()
        assert [error["pointer"] for error in body["errors"]] == ["jobs"]
        assert (await api.client.get("/livez")).json() == {"status": "ok"}

        embedded_redis.start(tmp_path / "redis")
        assert (await api.client.get("/readyz")).status_code == 200
        assert (await api.client.get(f"/v1/jobs/{job['id']}")).json() == job
    embedded_redis.stop(tmp_path / "redis")


async def test_without_its_directory_the_artifact_store_is_named(api: Api, tmp_path: Path) -> None:
    (tmp_path / "artifacts").rmdir()
    body = problem(await api.client.get("/readyz"), 503, "unavailable")
    assert [error["pointer"] for error in body["errors"]] == ["artifacts"]


async def test_progress_is_seen_in_the_job(api: Api) -> None:
    await api.jobs.create("local", job_spec())
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    await api.jobs.record(claim.job.id, claim.fence, block=block_record(0), status_detail="block 1 of 4")
    assert job_of(await api.client.get(f"/v1/jobs/{claim.job.id}")).status_detail == "block 1 of 4"


METHODS = [{"kind": "spqr", "bits": bits} for bits in (2, 3, 4)]


async def test_a_sweep_is_submitted_at_once_and_listed_by_its_id(api: Api) -> None:
    await api.client.post("/v1/jobs", json=SPEC)
    headers = {"Idempotency-Key": "grid"}
    first = await api.client.post("/v1/jobs", json=SPEC | {"method": METHODS}, headers=headers, params={"priority": 2})
    body = first.json()
    assert (first.status_code, body["object"]) == (202, "sweep")
    assert [member["spec"]["method"]["bits"] for member in body["data"]] == [2, 3, 4]
    assert {(member["sweep"], member["priority"]) for member in body["data"]} == {(body["id"], 2)}
    assert first.headers["location"] == f"/v1/jobs?sweep={body['id']}"
    listed = (await api.client.get(first.headers["location"])).json()
    assert listed["data"] == body["data"][::-1] and not listed["has_more"]
    again = await api.client.post("/v1/jobs", json=SPEC | {"method": METHODS}, headers=headers, params={"priority": 2})
    assert again.json() == body and again.headers["idempotent-replayed"] == "true"
    other = await api.client.post("/v1/jobs", json=SPEC | {"method": METHODS[:2]}, headers=headers)
    problem(other, 409, "conflict")
    stranger = await api.as_tenant("other")
    assert (await api.client.get(first.headers["location"], headers=stranger)).json()["data"] == []


async def test_a_bad_sweep_is_refused_as_parse_submission_refuses_it(api: Api) -> None:
    bad = SPEC | {"method": [METHODS[0], {"kind": "spqr", "bits": 99}, {"kind": "magic"}], "job": 1}
    for path in ("/v1/jobs", "/v1/plans"):
        body = problem(await api.client.post(path, json=bad), 422, "invalid-job")
        with pytest.raises(InvalidJob) as expected:
            parse_submission(bad)
        assert body["detail"] == expected.value.message
        assert {error["pointer"] for error in body["errors"]} == {"/method/1/bits", "/method/2", "/job"}
    assert (await api.client.get("/v1/jobs")).json()["data"] == []


async def test_every_member_of_a_sweep_counts_as_a_waiting_job(redis_url: str, tmp_path: Path) -> None:
    async with serving(Settings(redis_url=redis_url, state_dir=tmp_path, waiting_jobs_per_tenant=3)) as api:
        assert (await api.client.post("/v1/jobs", json=SPEC | {"method": METHODS[:2]})).status_code == 202
        refused = await api.client.post("/v1/jobs", json=SPEC | {"method": METHODS[:2]})
        problem(refused, 429, "too-many-jobs")
        assert (await api.client.post("/v1/jobs", json=SPEC)).status_code == 202
