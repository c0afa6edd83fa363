"""Jobs whose plan is for accelerators, on CPU shards: activations that wait on the host, fleets that lose devices."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import block_hashes, ignore, make_spec

from bitpress.errors import OutOfMemory, WorkerLost
from bitpress.jobs import JobSpec
from bitpress_workers.local_run import DirectoryRecorder
from bitpress_workers.pipeline.fleet import LocalFleet, Ref
from bitpress_workers.pipeline.outlook import outlook
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.run import Site, run_job
from bitpress_workers.pipeline.shard import Shard, ShardConfig

PLENTY = Devices("cuda", 2, 2**40)


class Losing(LocalFleet):
    """Says what was called, and loses a device at a method's first call."""

    called: list[str]
    loses_at: str | None = None

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        self.called.append(method.__name__)
        if method.__name__ == self.loses_at:
            raise WorkerLost("a device was lost")
        return super().all(method, *args)


@dataclass
class Cluster:
    """Makes fleets of CPU shards, of one shard less after each loss."""

    loses_at: str | None = None
    called: list[str] = field(default_factory=list)

    def make_fleet(self, config: ShardConfig, size: int, fewest: int, waiting: Callable[[str], None]) -> LocalFleet:
        fleet = Losing(replace(config, device="cpu"), size if not self.called else fewest)
        fleet.called, fleet.loses_at = self.called, self.loses_at if not self.called else None
        return fleet


def run(spec: JobSpec, directory: Path, devices: Devices, cluster: Cluster) -> None:
    directory.mkdir()
    site = Site(
        devices=devices,
        make_fleet=cluster.make_fleet,
        store_url=directory.as_uri(),
        scratch=directory / ".scratch",
    )
    run_job(spec, str, DirectoryRecorder(directory, ignore), site)


def test_activations_wait_on_the_host_when_the_plan_says_so(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 64, "sequence_length": 128}
    spec = make_spec(opt_mini, texts, {"kind": "gptq", "bits": 3}, calibration=calibration, devices=1)
    enough = outlook(spec, PLENTY, None, "nowhere").peak_device_bytes
    kept, offloaded = Cluster(), Cluster()
    run(spec, tmp_path / "kept", PLENTY, kept)
    run(spec, tmp_path / "offloaded", Devices("cuda", 1, enough - 1), offloaded)
    assert Shard.offload.__name__ not in kept.called
    assert Shard.offload.__name__ in offloaded.called
    assert block_hashes(tmp_path / "offloaded") == block_hashes(tmp_path / "kept")


def test_a_fleet_that_lost_a_device_is_planned_anew(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = make_spec(opt_mini, texts, {"kind": "gptq", "bits": 3}, devices=2)
    enough = outlook(spec, PLENTY, None, "nowhere").peak_device_bytes
    cluster = Cluster(loses_at=Shard.factorize.__name__)
    run(spec, tmp_path / "roomy", PLENTY, cluster)
    cluster = Cluster(loses_at=Shard.factorize.__name__)
    with pytest.raises(OutOfMemory, match=r"^on the 1 devices that are left the job needs about .* GiB on a device"):
        run(spec, tmp_path / "full", Devices("cuda", 2, enough), cluster)
