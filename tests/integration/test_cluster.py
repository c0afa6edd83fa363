"""A Ray cluster of three nodes on this machine, on loopback, one of its parts killed in the middle of a block."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import quick_worker
from pipeline_helpers import block_hashes, make_spec, run
from ray_jobs import RayJob, in_shard

from bitpress.artifacts import Report
from bitpress.errors import Conflict, InvalidJob, WorkerLost
from bitpress.jobs import JobSpec, JobState, ModelSource, Progress
from bitpress.methods import RTNConfig
from bitpress_service.jobstore import Capacity
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_workers.devices import DeviceWatch
from bitpress_workers.dispatcher import Dispatcher
from bitpress_workers.pipeline.shard import ShardConfig, ShardMethod
from bitpress_workers.ray_fleet import RaySession

# isort: split
import ray  # when it is imported, Ray reads how to authenticate, which ray_fleet sets
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow

SPQR = {"kind": "spqr", "bits": 3}
# After three seconds without an answer a node is gone for Ray; by default after half a minute or so.
SOON = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
ONE_CORE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args=ONE_CORE | {"_system_config": SOON})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def session(cluster: Cluster) -> Iterator[RaySession]:
    with RaySession(cluster.address, None) as session:
        yield session


@pytest.fixture
def nodes(cluster: Cluster, session: RaySession) -> list[object]:
    """The two nodes beside the head."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**ONE_CORE)
    ours = {node.node_id for node in (cluster.head_node, *cluster.worker_nodes)}
    # A node that another test removed lives on for Ray until it has missed some health checks.
    while {node["NodeID"] for node in ray.nodes() if node["Alive"]} != ours:
        time.sleep(0.1)
    return list(cluster.worker_nodes)


@pytest.fixture
def spec(opt_mini: Path, texts: Path) -> JobSpec:
    return make_spec(opt_mini, texts, SPQR, devices=3)


@pytest.fixture(scope="module")
def undisturbed(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    opt_mini = Path(__file__).parents[1] / "data" / "opt-mini"
    run(make_spec(opt_mini, texts, SPQR, devices=1), out)
    return out


def in_the_middle(job: RayJob, progress: Progress) -> bool:
    """Whether the first fleet has begun to solve the third block."""
    return len(job.fleets) == 1 and progress.blocks_done == 2 and progress.linear == "fc1"


def test_killed_shards_cost_the_block_in_hand_or_the_evaluation_and_no_more(
    session: RaySession, nodes: list[object], spec: JobSpec, undisturbed: Path, tmp_path: Path
) -> None:
    def strike(job: RayJob, progress: Progress) -> None:
        if in_the_middle(job, progress) or (len(job.fleets) == 2 and progress.phase == "evaluating"):
            os.kill(in_shard(job.fleets[-1], 1, os.getpid), signal.SIGKILL)

    job = RayJob(session, tmp_path / "out", strike)
    report = job.run(spec)
    assert [fleet.size for fleet in job.fleets] == [3, 3, 3]
    assert block_hashes(tmp_path / "out") == block_hashes(undisturbed)
    assert report.perplexity == Report.model_validate_json((undisturbed / "report.json").read_bytes()).perplexity
    losses = [entry for entry in report.ledger if entry.kind == "worker-replaced"]
    assert [loss.where for loss in losses] == ["after 2 blocks", "after 4 blocks"]
    assert all(loss.detail.startswith("shard 1 on ") for loss in losses)
    assert any(line.startswith("after 2 blocks: shard 1 on ") for line in job.lines)


def test_a_shard_that_stands_still_is_named_and_replaced(
    session: RaySession, nodes: list[object], opt_mini: Path, texts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    stopped: list[int] = []

    def strike(job: RayJob, progress: Progress) -> None:
        if in_the_middle(job, progress):
            fleet = job.fleets[0]
            fleet.stall_seconds = 15.0
            stopped.append(in_shard(fleet, 1, os.getpid))
            os.kill(stopped[0], signal.SIGSTOP)

    spec = make_spec(opt_mini, texts, SPQR, devices=2, evaluation={"datasets": []})
    job = RayJob(session, tmp_path / "out", strike)
    report = job.run(spec)
    assert [fleet.size for fleet in job.fleets] == [2, 2]
    assert block_hashes(tmp_path / "out") == block_hashes(undisturbed)
    (loss,) = [entry for entry in report.ledger if entry.kind == "worker-replaced"]
    assert loss.where == "after 2 blocks"
    assert re.fullmatch(r"shard 1 on [\d.]+ does not answer, for 15 s or more", loss.detail)
    with pytest.raises(ProcessLookupError):  # its device is free again
        os.kill(stopped[0], 0)


def test_a_killed_node_leaves_a_smaller_fleet(
    cluster: Cluster, session: RaySession, nodes: list[object], spec: JobSpec, undisturbed: Path, tmp_path: Path
) -> None:
    def strike(job: RayJob, progress: Progress) -> None:
        if in_the_middle(job, progress):
            cluster.remove_node(nodes[0], allow_graceful=False)

    job = RayJob(session, tmp_path / "out", strike)
    report = job.run(spec)
    assert [fleet.size for fleet in job.fleets] == [3, 2]
    assert block_hashes(tmp_path / "out") == block_hashes(undisturbed)
    (loss,) = [entry.where for entry in report.ledger if entry.kind == "worker-replaced"]
    assert loss in ("after 2 blocks", "after 3 blocks")  # a node's processes outlive it for a moment


def config(model: Path, directory: Path) -> ShardConfig:
    return ShardConfig(
        ModelSource(uri=str(model)), {0: ShardMethod(RTNConfig(bits=4), 64)}, "cpu", directory.as_uri(), (range(1),)
    )


def test_devices_that_are_busy_are_waited_for_and_those_that_are_not_there_are_not(
    session: RaySession, nodes: list[object], opt_mini: Path, tmp_path: Path
) -> None:
    settings, others = config(opt_mini, tmp_path), ray.util.placement_group([{"CPU": 1.0}])
    ray.get(others.ready())
    reasons = []

    def waiting(reason: str) -> None:
        reasons.append(reason)
        ray.util.remove_placement_group(others)

    session.make_fleet(settings, 3, 3, waiting).close()
    assert reasons[0] == "waiting for 3 devices: the cluster has 3, but not all of them are free"
    with pytest.raises(InvalidJob, match=r"asks for 4 devices .* the whole cluster has 3"):
        session.make_fleet(settings, 4, 4, waiting)


async def test_a_dispatcher_counts_the_devices_of_all_hosts(cluster: Cluster, nodes: list[object]) -> None:
    watch = DeviceWatch(cluster.address)
    assert watch.capacity == Capacity(cluster.address, 0)  # nothing is claimed before it has looked
    looking = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(1200):
            while watch.latest is None:
                await asyncio.sleep(0.1)
    finally:
        looking.cancel()
        await asyncio.wait({looking})
    assert (watch.latest.kind, [node.devices for node in watch.latest.nodes]) == ("cpu", [1, 1, 1])
    assert watch.capacity == Capacity(cluster.address, 3)


GATED_DRIVER = """
import pathlib, runpy, sys, time
gate, worker = sys.argv[1:]
while not pathlib.Path(gate).exists():
    time.sleep(0.05)
sys.path.insert(0, str(pathlib.Path(worker).parent))
sys.argv = [worker, "drive"]
runpy.run_path(worker, run_name="__main__")
"""


async def test_two_dispatchers_share_the_devices_and_nobody_counts_on_the_same(
    cluster: Cluster, nodes: list[object], spec: JobSpec, redis_url: str, tmp_path: Path
) -> None:
    """Ray says how many there are; the drivers hold them, without Ray, until a gate opens."""
    store, stop, gate = RedisJobStore.from_url(redis_url), asyncio.Event(), tmp_path / "gate"
    command = (sys.executable, "-c", GATED_DRIVER, str(gate), quick_worker.__file__)
    dispatchers = [
        Dispatcher(
            store, redis_url, tmp_path.as_uri(), cluster.address, tmp_path / "logs", owner=owner, driver_command=command
        )
        for owner in ("one", "two")
    ]
    serving = [asyncio.create_task(dispatcher.run(stop)) for dispatcher in dispatchers]
    try:
        while [each.devices and each.devices.total for each in (await store.cluster()).dispatchers] != [3, 3]:
            await asyncio.sleep(0.1)
        first, second, third = [
            (await store.create("local", spec.model_copy(update={"devices": devices})))[0] for devices in (2, 2, 1)
        ]
        while len(await store.holdings()) < 2:
            await asyncio.sleep(0.1)
        held = {holding.job_id: (holding.owner, holding.devices) for holding in await store.holdings()}
        assert {job_id: devices for job_id, (_, devices) in held.items()} == {first.id: 2, third.id: 1}
        assert {owner for owner, _ in held.values()} == {"one", "two"}
        waiting = await store.get(second.id)
        assert waiting.state is JobState.QUEUED and (waiting.status_detail or "").startswith("waiting for 2 devices: ")
        gate.touch()
        for job in (first, second, third):
            while not (job := await store.get(job.id)).state.terminal:
                await asyncio.sleep(0.1)
            assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    finally:
        stop.set()
        await asyncio.gather(*serving)
        await store.aclose()


def test_who_has_another_token_is_not_let_in(cluster: Cluster) -> None:
    looking = [sys.executable, "-m", "bitpress_workers", "devices", "--ray-address", cluster.address]
    stranger = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(looking, env=stranger, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode != 0 and done.stdout == ""


def test_a_host_with_another_version_is_refused(
    cluster: Cluster, session: RaySession, nodes: list[object], opt_mini: Path, tmp_path: Path
) -> None:
    metadata = tmp_path / "other" / "bitpress-0.0.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: bitpress\nVersion: 0.0.9\n")
    node = cluster.add_node(**ONE_CORE, env_vars={"PYTHONPATH": str(tmp_path / "other")})
    try:
        with pytest.raises(Conflict, match=r"host \S+ has bitpress 0\.0\.9 \(here"):
            session.make_fleet(config(opt_mini, tmp_path), 4, 4, lambda reason: None)
    finally:
        cluster.remove_node(node)


def test_shards_compute_as_their_driver_does(
    session: RaySession, nodes: list[object], opt_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    fleet = session.make_fleet(config(opt_mini, tmp_path), 1, 1, lambda reason: None)
    assert in_shard(fleet, 0, lambda: os.environ["MKL_CBWR"]) == "COMPATIBLE"
    fleet.close()


def test_a_fleet_that_keeps_dying_ends_the_attempt(
    session: RaySession, nodes: list[object], spec: JobSpec, tmp_path: Path
) -> None:
    def strike(job: RayJob, progress: Progress) -> None:
        if progress.phase == "calibrating":
            os.kill(in_shard(job.fleets[-1], 0, os.getpid), signal.SIGKILL)

    job = RayJob(session, tmp_path / "out", strike)
    with pytest.raises(WorkerLost, match=r"shard 0 on .* was lost"):
        job.run(spec.model_copy(update={"devices": 1}))
    assert len(job.fleets) == 4
