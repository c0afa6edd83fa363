"""The same bytes from every fleet: threads or Ray's actors, any number of shards."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import block_hashes, ignore, make_spec, run
from ray_jobs import RayJob

from bitpress.jobs import JobSpec, Progress
from bitpress_workers.local_run import DirectoryRecorder
from bitpress_workers.pipeline.fleet import FleetMaker, LocalFleet, local_devices, make_local_fleet
from bitpress_workers.pipeline.run import Site, run_job
from bitpress_workers.pipeline.shard import ShardConfig
from bitpress_workers.ray_fleet import RaySession

pytestmark = pytest.mark.slow

METHODS: dict[str, dict[str, Any]] = {
    "spqr": {"kind": "spqr", "bits": 3},  # its rows agree on one number
    "septq": {"kind": "septq", "bits": 3, "retained_percent": 1.0},  # on another, in two rounds
    "block": {"kind": "gptq", "bits": 4, "group_size": 32, "propagation": "block"},  # taps factorized at once
}


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession("local", 8) as session:
        yield session


def short(model: Path, texts: Path, method: dict[str, Any], shards: int, **more: Any) -> JobSpec:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 9, "sequence_length": 64}
    changes = {"calibration": calibration, "evaluation": {"datasets": []}, "devices": shards}
    return make_spec(model, texts, method, **changes | more)


def run_on(spec: JobSpec, out: Path, make_fleet: FleetMaker) -> None:
    """Run a job into a directory, on fleets of one's own."""
    out.mkdir()
    recorder = DirectoryRecorder(out, ignore)
    run_job(spec, str, recorder, Site(local_devices(), make_fleet, out.as_uri(), out / ".restoring"))


@pytest.mark.parametrize("name", METHODS)
def test_threads(opt_mini: Path, texts: Path, tmp_path: Path, name: str) -> None:
    hashes = []
    for shards in (1, 2, 3, 4, 8):
        run(short(opt_mini, texts, METHODS[name], shards), tmp_path / str(shards))
        hashes.append(block_hashes(tmp_path / str(shards)))
    assert len(hashes[0]) == 4
    assert all(found == hashes[0] for found in hashes)


@pytest.mark.parametrize("name", METHODS)
def test_shards_that_take_less_memory(opt_mini: Path, texts: Path, tmp_path: Path, name: str) -> None:
    def make_fleet(config: ShardConfig, *rest: Any) -> LocalFleet:
        return make_local_fleet(replace(config, thrifty=True), *rest)

    spec = short(opt_mini, texts, METHODS[name], 2)
    run(spec, tmp_path / "as planned")
    run_on(spec, tmp_path / "thrifty", make_fleet)
    assert block_hashes(tmp_path / "thrifty") == block_hashes(tmp_path / "as planned")


@pytest.mark.parametrize(("name", "shards"), [("block", 1), ("septq", 2), ("spqr", 8)])
def test_actors(session: RaySession, opt_mini: Path, texts: Path, tmp_path: Path, name: str, shards: int) -> None:
    run(short(opt_mini, texts, METHODS[name], 1), tmp_path / "local")
    job = RayJob(session, tmp_path / "ray")
    job.run(short(opt_mini, texts, METHODS[name], shards))
    assert [fleet.size for fleet in job.fleets] == [shards]
    assert block_hashes(tmp_path / "ray") == block_hashes(tmp_path / "local")


class Enough(Exception):
    """Ends a job from outside."""


def test_a_job_goes_on_with_other_numbers_of_devices(
    session: RaySession, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    def end_after(blocks: int) -> Callable[[RayJob, Progress], None]:
        def strike(_: RayJob, progress: Progress) -> None:
            if progress.phase == "calibrating" and progress.blocks_done == blocks and progress.linear == "fc2":
                raise Enough

        return strike

    sizes = []
    for shards, blocks in ((2, 1), (4, 2), (3, 4)):
        job = RayJob(session, tmp_path / "ray", end_after(blocks))
        with pytest.raises(Enough) if blocks < 4 else nullcontext():
            job.run(short(opt_mini, texts, METHODS["spqr"], shards))
        sizes += [fleet.size for fleet in job.fleets]
        assert len(block_hashes(tmp_path / "ray")) == blocks
    assert sizes == [2, 4, 3]
    run(short(opt_mini, texts, METHODS["spqr"], 1), tmp_path / "local")
    assert block_hashes(tmp_path / "ray") == block_hashes(tmp_path / "local")


class MeasuredFleet(LocalFleet):
    """Notes the size of what its controller hands out, by method, and of what it gets back."""

    def __init__(self, config: ShardConfig, size: int) -> None:
        self.sizes: Counter[str] = Counter()
        super().__init__(config, size)

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Any:
        self._note(method.__name__, args)
        return super().on(index, method, *args)

    def get(self, refs: Sequence[Any]) -> list[Any]:
        values = super().get(refs)
        for value in values:
            self._note("returned", value)
        return values

    def _note(self, what: str, value: Any) -> None:
        self.sizes[what] = max(self.sizes[what], len(pickle.dumps(value)))


@pytest.mark.parametrize(
    "method", [*METHODS.values(), {"kind": "ptq161", "epochs": 2}], ids=lambda method: method["kind"]
)
def test_the_controller_holds_reports_and_tokens_alone(
    opt_mini: Path, texts: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    fleets: list[MeasuredFleet] = []

    def make_fleet(config: ShardConfig, size: int, fewest: int, waiting: Any) -> LocalFleet:
        fleets.append(MeasuredFleet(config, size))
        return fleets[-1]

    evaluation = {"datasets": [str(texts / "evaluation.txt")], "sequence_length": 64, "max_sequences": 6}
    run_on(short(opt_mini, texts, method, 2, evaluation=evaluation), tmp_path / "out", make_fleet)
    sizes = fleets[0].sizes
    tokens = 8 * 9 * 64
    assert tokens < sizes.pop("start") < tokens + 4096
    # The smallest of what shards hold: activations of a sequence take 32 KiB, a weight 64 KiB, a Hessian as much.
    assert max(sizes.values()) < 24 * 1024, sizes  # 4,096 logits: what the loaded artifact has to come to
