"""What /metrics tells, to whom, and that the dashboard and the alerts ask for nothing else."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_api import Api
from service_helpers import LEASE, block_record, failure, job_spec

from bitpress.cluster import Devices, DispatcherReport, Node
from bitpress_service.jobstore import Capacity, Fenced
from bitpress_service.metrics import BLOCK_BUCKETS

DEPLOY = Path(__file__).parents[2] / "deploy"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(api: Api) -> Samples:
    answer = await api.client.get("/metrics", headers={"Authorization": ""})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def test_the_queue_by_priority(api: Api) -> None:
    for priority in (-5, 0, 0, 7, 7, 7):
        await api.jobs.create("local", job_spec(), priority=priority)
    samples = await scrape(api)
    for priority, count in ((-5, 1), (0, 2), (7, 3)):
        assert value(samples, "bitpress_queued_jobs", priority=str(priority)) == count
        assert 0 <= (value(samples, "bitpress_oldest_queued_seconds", priority=str(priority)) or 0) < 60
    assert value(samples, "bitpress_leases", state="held") == 0


async def test_attempts_outcomes_takeovers_and_fenced_writes(api: Api) -> None:
    for _ in range(3):
        await api.jobs.create("local", job_spec())
    lost = await api.jobs.claim("worker", 0)
    assert lost is not None
    assert value(await scrape(api), "bitpress_leases", state="expired") == 1
    await api.jobs.reap()
    with pytest.raises(Fenced):
        await api.jobs.record(lost.job.id, lost.fence, log="a zombie's")
    with pytest.raises(Fenced):
        await api.jobs.finish(lost.job.id, lost.fence, state="failed", error=failure())
    for outcome in ("succeeded", "failed"):
        claim = await api.jobs.claim("worker", LEASE)
        assert claim is not None
        for index in (0, 1, 1):
            await api.jobs.record(claim.job.id, claim.fence, block=block_record(index))
        if outcome == "failed":
            await api.jobs.finish(claim.job.id, claim.fence, state="failed", error=failure())
        else:
            await api.jobs.finish(claim.job.id, claim.fence, state="succeeded", files={"manifest.json": "key"})
    for job in (await api.jobs.list("local", limit=3)).data:
        await api.jobs.request_cancel(job.id)
    samples = await scrape(api)
    for outcome in ("succeeded", "failed", "cancelled"):
        assert value(samples, "bitpress_finished_jobs_total", outcome=outcome) == 1
    assert value(samples, "bitpress_attempts_total") == 3
    assert value(samples, "bitpress_takeovers_total") == 1
    assert value(samples, "bitpress_fenced_writes_total") == 2
    assert value(samples, "bitpress_block_seconds_count") == 4  # one that is known already is no new one
    assert value(samples, "bitpress_block_seconds_bucket", le="+Inf") == 4
    assert value(samples, "bitpress_block_seconds_sum") is not None


async def test_devices_of_a_shared_cluster_count_once(api: Api) -> None:
    def devices(kind: str, total: int, free: int) -> Devices:
        return Devices(kind=kind, total=total, free=free, nodes=(Node(host="a", devices=total),))

    for owner, cluster, found in (
        ("a:1", "ray:6380", devices("cuda", 8, 8)),
        ("b:1", "ray:6380", devices("cuda", 8, 8)),
        ("c:1", "gone:6380", None),
        ("d:1", "local", devices("cpu", 4, 1)),
        ("e:1", "local", devices("cpu", 2, 2)),
    ):
        busy = found is not None and found.free < found.total
        await api.jobs.report(DispatcherReport(owner=owner, cluster=cluster, busy=busy, devices=found), 60)
    await api.jobs.create("local", job_spec().model_copy(update={"devices": 3}))
    assert await api.jobs.claim("a:1", LEASE, Capacity("ray:6380", 8))
    samples = await scrape(api)
    assert value(samples, "bitpress_dispatchers") == 5
    for kind, total, busy in (("cuda", 8, 3), ("cpu", 6, 3)):
        assert value(samples, "bitpress_devices", kind=kind) == total
        assert value(samples, "bitpress_busy_devices", kind=kind) == busy


def test_the_buckets_of_blocks_are_the_same_where_they_are_counted() -> None:
    script = (Path(__file__).parents[2] / "service/bitpress_service/lua/record.lua").read_text()
    found = re.search(r"ipairs\(\{([0-9, ]+)\}\)", script)
    assert found is not None and tuple(map(int, found[1].split(", "))) == BLOCK_BUCKETS


async def test_requests_by_the_pattern_of_their_route(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    for path in (f"/v1/jobs/{job.id}", f"/v1/jobs/{job.id}", "/v1/jobs/none", "/nowhere/at/all"):
        await api.client.get(path)
    await api.client.request("BREW", "/v1/jobs")
    samples = await scrape(api)
    name = "bitpress_http_request_seconds_count"
    assert value(samples, name, method="GET", route="/v1/jobs/{job_id}", status="200") == 2
    assert value(samples, name, method="GET", route="/v1/jobs/{job_id}", status="404") == 1
    assert value(samples, name, method="GET", route="none", status="404") == 1
    assert not any(method == "BREW" for _, labels in samples for _, method in labels)


async def test_who_calls_from_elsewhere_needs_the_scope(api: Api) -> None:
    # A proxy on this machine tells whom it speaks for.
    elsewhere = {"X-Forwarded-For": "203.0.113.7"}
    for key, status in (
        ({"Authorization": ""}, 401),
        (await api.as_tenant("ops", "jobs:read"), 403),
        (await api.as_tenant("ops", "metrics:read"), 200),
    ):
        assert (await api.client.get("/metrics", headers=key | elsewhere)).status_code == status


def queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/bitpress.json").read_text())
    alerts = (DEPLOY / "prometheus/alerts.yml").read_text()
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + re.findall(
        r"expr: (>-\n(?: {10}.*\n)+|.*)", alerts
    )


async def test_the_dashboard_and_the_alerts_ask_for_what_there_is(api: Api) -> None:
    claim = None
    for _ in range(2):
        await api.jobs.create("local", job_spec())
        claim = claim or await api.jobs.claim("worker", LEASE)
    devices = Devices(kind="cuda", total=1, free=1, nodes=(Node(host="a", devices=1),))
    await api.jobs.report(DispatcherReport(owner="a:1", cluster="local", busy=False, devices=devices), 60)
    await scrape(api)
    names = {name for name, _ in await scrape(api)}
    asked = {name for query in queries() for name in re.findall(r"bitpress_\w+", query)}
    assert len(asked) >= 12
    assert asked <= names
    labels = {label for _, labels in await scrape(api) for label, _ in labels}
    for query in queries():
        for group in re.findall(r"by \(([^)]*)\)|\{(\w+)=", query):
            assert {label.strip() for label in "".join(group).split(",")} <= labels, query
