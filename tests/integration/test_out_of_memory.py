"""Memory runs out under a job: it goes on once with less, and says so; the next time it fails."""

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_helpers import block_hashes, make_spec, run
from ray_jobs import RayJob, in_shard

from bitpress.errors import OutOfMemory
from bitpress.jobs import JobSpec, Progress
from bitpress_workers.ray_fleet import RaySession

SPQR = {"kind": "spqr", "bits": 3}
CONTROL_GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession("local", 2) as session:
        yield session


@pytest.fixture
def control_group() -> Iterator[Path]:
    """Processes whose memory is limited together."""
    group = CONTROL_GROUPS / f"bitpress-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group (version 1): {error}")
    yield group
    while (group / "cgroup.procs").read_text():  # shards that are on their way out
        time.sleep(0.1)
    group.rmdir()


def short(model: Path, texts: Path, shards: int) -> JobSpec:
    return make_spec(model, texts, SPQR, devices=shards, evaluation={"datasets": []})


class Confined:
    """Puts the shards of every fleet into a control group before they begin."""

    def __init__(self, group: Path) -> None:
        self._group, self._fleets = group, 0

    def __call__(self, job: RayJob, progress: Progress) -> None:
        if progress.phase == "calibrating" and len(job.fleets) > self._fleets:
            self._fleets = len(job.fleets)
            for shard in range(job.fleets[-1].size):
                (self._group / "cgroup.procs").write_text(str(in_shard(job.fleets[-1], shard, os.getpid)))


def test_a_host_too_small_for_two_shards_goes_on_with_one(
    session: RaySession, control_group: Path, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    RayJob(session, tmp_path / "one", Confined(control_group)).run(short(opt_mini, texts, 1))
    needed = int((control_group / "memory.max_usage_in_bytes").read_text())
    (control_group / "memory.limit_in_bytes").write_text(str(needed * 4 // 3))

    job = RayJob(session, tmp_path / "two", Confined(control_group))
    report = job.run(short(opt_mini, texts, 2))
    assert [fleet.size for fleet in job.fleets] == [2, 1]
    assert block_hashes(tmp_path / "two") == block_hashes(tmp_path / "one")
    (entry,) = [entry for entry in report.ledger if entry.kind == "smaller-plan"]
    assert "was ended by its system, which lacked memory; the job went on with 1 shards" in entry.detail


def test_memory_that_is_refused_twice_is_an_error(
    session: RaySession, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    def limit_to_what_it_has() -> None:
        status = Path("/proc/self/status").read_text()
        data = int(status.split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + 2**18, resource.RLIM_INFINITY))

    def strike(job: RayJob, progress: Progress) -> None:
        if progress.phase == "calibrating" and progress.blocks_done == len(job.fleets):
            in_shard(job.fleets[-1], 0, limit_to_what_it_has)

    job = RayJob(session, tmp_path / "out", strike)
    with pytest.raises(OutOfMemory, match="a host ran out of memory"):
        job.run(short(opt_mini, texts, 1))
    assert len(job.fleets) == 2
    assert any("the job goes on with 1 shards, activations in host memory" in line for line in job.lines)
    run(short(opt_mini, texts, 1), tmp_path / "undisturbed")
    assert block_hashes(tmp_path / "out").items() <= block_hashes(tmp_path / "undisturbed").items()
