"""Jobs on Ray in the test's own process, which can look at the fleet and strike it while they run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitpress.artifacts import Report
from bitpress.jobs import JobSpec, Progress
from bitpress_workers.local_run import DirectoryRecorder
from bitpress_workers.pipeline.run import Site, run_job
from bitpress_workers.pipeline.shard import ShardConfig
from bitpress_workers.ray_fleet import RayFleet, RaySession

# isort: split
import ray  # when it is imported, Ray reads how to authenticate, which ray_fleet sets


@dataclass(frozen=True)
class Logbook(DirectoryRecorder):
    lines: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def log(self, message: str) -> None:
        self.lines.append(message)

    def waiting(self, reason: str) -> None:
        self.reasons.append(reason)


@dataclass
class RayJob:
    """One job into a directory, where an earlier one may have begun it.

    strike: called with every progress; fleets: all that the job had, in order; lines: what it logged;
    reasons: why it waited.
    """

    session: RaySession
    directory: Path
    strike: Callable[["RayJob", Progress], None] = lambda job, progress: None
    fleets: list[RayFleet] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def run(self, spec: JobSpec) -> Report:
        self.directory.mkdir(exist_ok=True)
        site = Site(
            devices=self.session.devices(),
            make_fleet=self._make_fleet,
            store_url=self.directory.as_uri(),
            scratch=self.directory / ".scratch",
        )
        recorder = Logbook(
            self.directory, lambda progress: self.strike(self, progress), lines=self.lines, reasons=self.reasons
        )
        return run_job(spec, str, recorder, site)

    def _make_fleet(self, config: ShardConfig, size: int, fewest: int, waiting: Callable[[str], None]) -> RayFleet:
        self.fleets.append(self.session.make_fleet(config, size, fewest, waiting))
        return self.fleets[-1]


def in_shard(fleet: RayFleet, shard: int, function: Callable[[], Any]) -> Any:
    """What a function returns in the process of a shard that is idle."""
    return ray.get(fleet._actors[shard].__ray_call__.remote(lambda _: function()))
