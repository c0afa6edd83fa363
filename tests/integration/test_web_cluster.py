"""The page of the cluster, and the linears of a job that runs."""

import json
from dataclasses import replace

from running_api import Api
from sample_report import sample_report
from service_helpers import LEASE, block_record, failure, job_spec
from test_web_pages import text_of
from web_session import logged_in

from bitpress.cluster import Devices, DispatcherReport, Node
from bitpress.jobs import Job, JobSpec, Progress
from bitpress_service.jobstore import Capacity, Claim

RAY = "10.0.0.1:6380"


def asking(devices: int, name: str) -> JobSpec:
    return job_spec().model_copy(update={"devices": devices, "name": name})


async def reporting(api: Api, owner: str, cluster: str, total: int, *, free: int = 0, busy: bool = False) -> None:
    nodes = tuple(Node(host=f"{owner}-host{n}", devices=total // 2) for n in range(2))
    devices = Devices(kind="cuda", total=total, free=free, nodes=nodes) if total else None
    await api.jobs.report(DispatcherReport(owner=owner, cluster=cluster, busy=busy, devices=devices), 60)


async def claimed(api: Api, owner: str, total: int) -> Claim:
    claim = await api.jobs.claim(owner, LEASE, Capacity(RAY, total))
    assert claim is not None
    return claim


async def test_without_a_dispatcher_it_says_how_to_start_one(api: Api) -> None:
    await api.jobs.create("local", asking(1, "lonely"))
    async with logged_in(api) as client:
        text = text_of((await client.get("/ui/cluster")).text)
    assert "No dispatcher reports" in text and "bitpress up" in text and "bitpress doctor" in text
    assert "lonely" in text and "waiting for a dispatcher" in text


async def test_a_cluster_its_hosts_what_runs_there_and_why_others_wait(api: Api) -> None:
    await reporting(api, "a:1", RAY, 8)
    await reporting(api, "b:2", RAY, 8)
    await reporting(api, "c:3", "local", 4, free=1, busy=True)
    await reporting(api, "d:4", "gone:6380", 0)
    await api.jobs.create("local", asking(3, "mine that runs"), priority=5)
    running = await claimed(api, "a:1", 8)
    await api.jobs.record(running.job.id, running.fence, progress=Progress(phase="calibrating", fraction=0.25))
    await api.jobs.create("rival", asking(2, "a secret of rivals"), priority=5)
    await claimed(api, "b:2", 8)
    await api.jobs.create("local", asking(4, "too large for now"))
    await api.jobs.create("local", asking(64, "too large for ever"), priority=1)
    assert await api.jobs.claim("a:1", LEASE, Capacity(RAY, 8)) is None
    async with logged_in(api) as client:
        page = (await client.get("/ui/cluster")).text
        part = (await client.get("/ui/cluster", headers={"HX-Request": "true"})).text
    text = text_of(page)
    assert "5 of 8 busy" in text and "3 of 4 busy" in text and text.count("busy") == 2
    assert "a:1-host0 4 \N{MULTIPLICATION SIGN} cuda" in text and "out of reach" in text
    assert "mine that runs" in text and "25 % · calibrating" in text and f'href="/ui/jobs/{running.job.id}"' in page
    assert "another tenant's" in text and "a secret of rivals" not in page
    assert "waiting for 4 devices: 3 of 8 are free" in text
    assert text.index("too large for ever") < text.index("too large for now"), "by priority"
    assert part.lstrip().startswith('<div id="cluster"') and "<html" not in part


async def published(api: Api, job: Job, claim: Claim, index: int) -> None:
    """A block with its evidence, as a driver publishes it."""
    report = sample_report(job.spec).blocks[index]
    record = replace(block_record(index), sidecar_key=f"t/local/jobs/{job.id}/a1/{index}.json")
    api.artifacts.put_bytes(record.sidecar_key, json.dumps({"chain": "", "report": report.model_dump()}).encode())
    await api.jobs.record(job.id, claim.fence, block=replace(record, sidecar_sha256=f"{job.id}{index}"))


async def test_the_linears_of_a_running_job_are_figures_as_they_come(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    claim = await claimed(api, "a:1", 8)
    async with logged_in(api) as client:
        assert "Linears so far" not in (await client.get(f"/ui/jobs/{job.id}")).text
        await published(api, job, claim, 0)
        page = (await client.get(f"/ui/jobs/{job.id}")).text
        assert "Relative error of each linear" in page and "Outliers of each linear" in page
        assert "<title>block 0, self_attn.q_proj: 0.001</title>" in page
        assert "<title>block 0, mlp.experts.*.up_proj: 0.003</title>" in page, "the worst of the experts"
        await published(api, job, claim, 1)
        part = (await client.get(f"/ui/jobs/{job.id}/linears")).text
        assert part.count("<title>block 1, ") == 4 and "<html" not in part
        await api.jobs.record(job.id, claim.fence, block=block_record(2))  # its evidence is not there
        part = (await client.get(f"/ui/jobs/{job.id}/linears")).text
        assert "cannot be read now" in part and "<svg" not in part
        await api.jobs.finish(job.id, claim.fence, state="failed", error=failure())
        text = text_of((await client.get(f"/ui/jobs/{job.id}")).text)
        assert "Failed: out-of-memory" in text and "a plan shows the need beforehand" in text


async def test_a_job_without_outliers_has_one_figure(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    claim = await claimed(api, "a:1", 8)
    record = replace(block_record(0), sidecar_key=f"t/local/jobs/{job.id}/a1/0.json", sidecar_sha256=job.id)
    block = sample_report(job.spec).blocks[0]
    linears = tuple(linear.model_copy(update={"outlier_fraction": 0.0}) for linear in block.linears)
    evidence = {"report": block.model_copy(update={"linears": linears}).model_dump()}
    api.artifacts.put_bytes(record.sidecar_key, json.dumps(evidence).encode())
    await api.jobs.record(job.id, claim.fence, block=record)
    async with logged_in(api) as client:
        part = (await client.get(f"/ui/jobs/{job.id}/linears")).text
    assert part.count("<svg") == 1


async def test_another_tenants_linears_are_not_found(api: Api) -> None:
    job, _ = await api.jobs.create("rival", job_spec())
    async with logged_in(api) as client:
        assert (await client.get(f"/ui/jobs/{job.id}/linears")).status_code == 404
