"""Redis is lost with all that it held: jobs are made again of what lies in the artifact store."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from running_api import Api
from sample_report import sample_report
from service_helpers import LEASE, job_spec

from bitpress.artifacts import MANIFEST, REPORT, ArtifactFile, GateMiss, Manifest, Report
from bitpress.jobs import Job, JobState
from bitpress_service.artifactstore import job_key
from bitpress_service.recovery import Finding, Recovery
from bitpress_service.redis_client import connect


@pytest.fixture
async def recovery(api: Api, redis_url: str) -> AsyncIterator[Recovery]:
    client = connect(redis_url)
    yield Recovery(client)
    await client.aclose()


async def take_in(api: Api, recovery: Recovery) -> dict[str, Finding]:
    return {finding.job_id: finding async for finding in recovery.take_in(api.artifacts)}


async def made(api: Api, report: Report, *, with_manifest: bool = True) -> tuple[Job, dict[str, str]]:
    """A job of two attempts: the first published the blocks, the second all else. Returns it with its files' keys."""
    job, _ = await api.jobs.create("local", report.spec)
    contents = {REPORT: report.model_dump_json().encode()}
    for block in report.blocks:
        for kind in ("safetensors", "json"):
            contents[f"blocks/{block.index:05d}.{kind}"] = f"{block.index}{kind}".encode()
    files = tuple(
        ArtifactFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    )
    contents[MANIFEST] = Manifest(spec=job.spec, fingerprint="0" * 64, files=files).model_dump_json().encode()
    keys: dict[str, str] = {}
    for parts in (["blocks/"], [REPORT, MANIFEST] if with_manifest else [REPORT]):
        claim = await api.jobs.claim("worker", LEASE)
        assert claim is not None and claim.job.id == job.id
        for name, data in contents.items():
            if name.startswith(tuple(parts)):
                keys[name] = job_key("local", job.id, claim.fence, name)
                api.artifacts.put_bytes(keys[name], data)
        if REPORT not in keys:
            await api.jobs.release(job.id, claim.fence, delay_seconds=0)
    if with_manifest:
        job = await api.jobs.finish(job.id, claim.fence, state="succeeded", files=keys)
    return job, keys


def lose_everything(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()


async def test_a_job_is_again_what_it_was(api: Api, recovery: Recovery, redis_url: str) -> None:
    report = sample_report(job_spec(team="nlp"))
    before, keys = await made(api, report)
    assert {finding.state for finding in (await take_in(api, recovery)).values()} == {"known"}
    lose_everything(redis_url)
    assert await take_in(api, recovery) == {before.id: Finding(before.id, "local", "taken-in")}
    job = await api.jobs.get(before.id, "local")
    assert (job.state, job.spec, job.attempt) == (JobState.SUCCEEDED, before.spec, 2)
    assert abs((job.created_at - before.created_at).total_seconds()) < 60
    assert await api.jobs.files(job.id) == keys
    blocks = await api.jobs.blocks(job.id)
    assert {index: block.key for index, block in blocks.items()} == {
        block.index: keys[f"blocks/{block.index:05d}.safetensors"] for block in report.blocks
    }
    assert [page.id for page in (await api.jobs.list("local", limit=10)).data] == [job.id]
    assert [event.type for event in await api.jobs.events(job.id)] == ["log", "state"]
    assert {finding.state for finding in (await take_in(api, recovery)).values()} == {"known"}
    headers = await api.as_tenant("local")  # its key was lost as well
    answer = await api.client.get(f"/v1/jobs/{job.id}/artifacts/blocks/00000.json", headers=headers)
    assert answer.content == b"0json"
    listed = await api.client.get("/v1/jobs?label=team=nlp", headers=headers)
    assert [each["id"] for each in listed.json()["data"]] == [job.id]


async def test_one_that_missed_its_gate_has_failed_again_and_may_be_retried(
    api: Api, recovery: Recovery, redis_url: str
) -> None:
    miss = GateMiss(metric="kl_max", dataset="/texts/held-out.txt", limit=0.1, found=0.2)
    before, _ = await made(api, sample_report(job_spec()).model_copy(update={"gate_misses": (miss,)}))
    lose_everything(redis_url)
    await take_in(api, recovery)
    job = await api.jobs.get(before.id)
    assert job.state is JobState.FAILED and job.error is not None and job.error.code == "gate-failed"
    assert (await api.jobs.retry(job.id, "local")).state is JobState.QUEUED
    claim = await api.jobs.claim("worker", LEASE)
    assert claim is not None
    assert claim.fence > max(int(path.name[1:]) for path in (_root(api) / f"t/local/jobs/{job.id}").iterdir())


async def test_what_is_not_whole_is_left_alone_and_named(api: Api, recovery: Recovery, redis_url: str) -> None:
    whole, _ = await made(api, sample_report(job_spec()))
    changed, keys = await made(api, sample_report(job_spec()))
    unfinished, _ = await made(api, sample_report(job_spec()), with_manifest=False)
    lose_everything(redis_url)
    (_root(api) / keys["blocks/00000.safetensors"]).write_bytes(b"0SAFETENSORS")
    found = await take_in(api, recovery)
    assert {job_id: finding.state for job_id, finding in found.items()} == {
        whole.id: "taken-in", changed.id: "damaged", unfinished.id: "unfinished",
    }  # fmt: skip
    assert found[changed.id].why.startswith("blocks/00000.safetensors: no object has the sha256")
    (_root(api) / keys[MANIFEST]).write_bytes(b"{}")
    found = await take_in(api, recovery)
    assert replace(found[changed.id], why="") == Finding(changed.id, "local", "damaged")
    assert found[changed.id].why.startswith("manifest.json: ")


def _root(api: Api) -> Path:
    return api.app.state.settings.state_dir / "artifacts"
