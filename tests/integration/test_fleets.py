"""The same bytes from every fleet: threads or Ray's actors, any number of shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import block_hashes, make_spec, run
from ray_jobs import RayJob

from bitpress_workers.ray_fleet import RaySession

METHODS: dict[str, dict[str, Any]] = {
    "spqr": {"kind": "spqr", "bits": 3},  # its rows agree on one number
    "septq": {"kind": "septq", "bits": 3, "retained_percent": 1.0},  # on another, in two rounds
    "block": {"kind": "gptq", "bits": 4, "group_size": 32, "propagation": "block"},  # taps factorized at once
}


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession("local", 8) as session:
        yield session


def short(model: Path, texts: Path, method: dict[str, Any], shards: int) -> Any:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 9, "sequence_length": 64}
    evaluation: dict[str, Any] = {"datasets": []}
    return make_spec(model, texts, method, calibration=calibration, evaluation=evaluation, devices=shards)


@pytest.mark.parametrize("name", METHODS)
def test_threads(opt_mini: Path, texts: Path, tmp_path: Path, name: str) -> None:
    hashes = []
    for shards in (1, 2, 3, 4, 8):
        run(short(opt_mini, texts, METHODS[name], shards), tmp_path / str(shards))
        hashes.append(block_hashes(tmp_path / str(shards)))
    assert len(hashes[0]) == 4
    assert all(found == hashes[0] for found in hashes)


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("block", 1),
        ("block", 4),
        ("septq", 2),
        ("spqr", 3),
        pytest.param("spqr", 8, marks=pytest.mark.slow),
    ],
)
def test_actors(session: RaySession, opt_mini: Path, texts: Path, tmp_path: Path, name: str, shards: int) -> None:
    run(short(opt_mini, texts, METHODS[name], 1), tmp_path / "local")
    job = RayJob(session, tmp_path / "ray")
    job.run(short(opt_mini, texts, METHODS[name], shards))
    assert [fleet.size for fleet in job.fleets] == [shards]
    assert block_hashes(tmp_path / "ray") == block_hashes(tmp_path / "local")
