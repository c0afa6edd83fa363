"""The independent strategy: dense calibration, the same bytes on any fleet, blocks out of order, losses."""

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import block_hashes, make_spec, run
from ray_jobs import RayJob, in_shard
from transformers import AutoModelForCausalLM

from bitpress.artifacts import Manifest
from bitpress.errors import Conflict, InvalidJob
from bitpress.jobs import JobSpec, Progress
from bitpress_workers.local_run import MARKER, run_local
from bitpress_workers.methods import compress
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton, tap_inputs
from bitpress_workers.pipeline.block_file import read_linears
from bitpress_workers.pipeline.calibration import calibration_tokens
from bitpress_workers.pipeline.independent import ranges
from bitpress_workers.ray_fleet import RayFleet, RaySession

METHODS: dict[str, dict[str, Any]] = {
    "spqr": {"kind": "spqr", "bits": 3},
    "septq": {"kind": "septq", "bits": 3, "propagation": "block"},
    "gptq": {"kind": "gptq", "bits": 3, "group_size": 32},
    "rtn": {"kind": "rtn", "bits": 4, "group_size": 32},
}


def independent(model: Path, texts: Path, method: dict[str, Any], shards: int = 1, **overrides: Any) -> JobSpec:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 9, "sequence_length": 64}
    overrides = {"calibration": calibration, "evaluation": {"datasets": []}} | overrides
    return make_spec(model, texts, method, strategy="independent", devices=shards, **overrides)


def test_every_linear_is_solved_for_the_inputs_it_has_in_the_dense_model(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    """Held against `compress` on Hessians gathered by the whole model."""
    # More tokens than columns, and well damped: what rounding does to the sums turns few codes over.
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 24, "sequence_length": 128}
    method = METHODS["gptq"] | {"damping": 1.0}
    spec = independent(opt_mini, texts, method, shards=2, calibration=calibration)
    run(spec, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(opt_mini, dtype=torch.float32)
    tokens_NS = calibration_tokens(spec.calibration, Checkpoint.open(str(opt_mini)).tokenizer())
    skeleton = Skeleton(Checkpoint.open(str(opt_mini)))
    for index, block in enumerate(model.model.decoder.layers):
        data = (tmp_path / "out" / "blocks" / f"{index:05d}.safetensors").read_bytes()
        linears = read_linears(data, hashlib.sha256(data).hexdigest(), "")
        hessians: dict[str, torch.Tensor] = {}

        def gather(tap: str, x_TI: torch.Tensor, hessians: dict[str, torch.Tensor] = hessians) -> None:
            hessians[tap] = x_TI.T @ x_TI

        taps = skeleton.taps(index)
        with torch.no_grad(), tap_inputs(block, taps, gather):
            model(tokens_NS)
        for name, hessian in [(name, hessians[tap.name]) for tap in taps for name in tap.linears]:
            weight = block.get_parameter(f"{name}.weight").data
            alone = compress(weight, hessian, spec.method).dequantize()
            found = linears[f"{skeleton.block_name(index)}.{name}"].dequantize()
            assert (found - alone).abs().gt(1e-3).float().mean() < 0.01, f"{index} {name}"


def test_what_is_calibrated_differs_from_exact_behind_the_first_block(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    spec = independent(opt_mini, texts, METHODS["gptq"])
    run(spec, tmp_path / "independent")
    run(spec.model_copy(update={"strategy": "exact"}), tmp_path / "exact")
    ours, theirs = block_hashes(tmp_path / "independent"), block_hashes(tmp_path / "exact")
    first, *others = ours
    assert ours[first] == theirs[first]
    assert all(ours[name] != theirs[name] for name in others)


@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_shards_gives_the_same_bytes(mini_model: Path, texts: Path, tmp_path: Path, name: str) -> None:
    hashes = []
    for shards in (1, 2, 3, 8):
        run(independent(mini_model, texts, METHODS[name], shards), tmp_path / str(shards))
        hashes.append(block_hashes(tmp_path / str(shards)))
    assert len(hashes[0]) == 4
    assert all(found == hashes[0] for found in hashes)
    chains = {Manifest.model_validate_json((tmp_path / n / "manifest.json").read_text()).fingerprint for n in "1238"}
    assert len(chains) == 1


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession("local", 3) as session:
        yield session


def test_actors_give_the_same_bytes(session: RaySession, opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    run(independent(opt_mini, texts, METHODS["septq"]), tmp_path / "local")
    RayJob(session, tmp_path / "ray").run(independent(opt_mini, texts, METHODS["septq"], 3))
    assert block_hashes(tmp_path / "ray") == block_hashes(tmp_path / "local")


def test_a_lost_shard_costs_what_was_in_hand(session: RaySession, opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    run(independent(opt_mini, texts, METHODS["rtn"]), tmp_path / "local")
    pids: list[int] = []

    def strike(job: RayJob, progress: Progress) -> None:
        if progress.phase == "calibrating" and len(job.fleets) == 1 and pids:
            os.kill(pids.pop(), signal.SIGKILL)

    class Watched(RayJob):
        def _make_fleet(self, *args: Any) -> RayFleet:
            fleet = super()._make_fleet(*args)
            pids.append(in_shard(fleet, 1, os.getpid))
            return fleet

    job = Watched(session, tmp_path / "ray", strike)
    report = job.run(independent(opt_mini, texts, METHODS["rtn"], 2))
    assert block_hashes(tmp_path / "ray") == block_hashes(tmp_path / "local")
    assert len(job.fleets) == 2
    assert [entry.kind for entry in report.ledger] == ["worker-replaced"]


def test_a_run_goes_on_from_blocks_published_in_any_order(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = independent(opt_mini, texts, METHODS["spqr"])
    run(spec, tmp_path / "whole")
    out = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "whole" / "blocks", out / "blocks")
    (out / MARKER).write_text(spec.model_dump_json())
    for block in ("00000", "00002"):
        (out / "blocks" / f"{block}.json").unlink()
    kept = {name: (out / "blocks" / name).stat().st_mtime_ns for name in ("00001.safetensors", "00003.safetensors")}
    seen: list[Progress] = []
    run_local(spec.model_copy(update={"devices": 2}), out, seen.append)
    assert block_hashes(out) == block_hashes(tmp_path / "whole")
    assert {name: (out / "blocks" / name).stat().st_mtime_ns for name in kept} == kept
    assert [progress.blocks_done for progress in seen if progress.phase == "calibrating"] == [1, 2, 3, 4]


def test_blocks_of_the_other_strategy_are_refused(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = independent(opt_mini, texts, METHODS["rtn"])
    run(spec.model_copy(update={"strategy": "exact"}), tmp_path / "exact")
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "exact" / "blocks", out / "blocks")
    (out / MARKER).write_text(spec.model_dump_json())
    with pytest.raises(Conflict, match="another model, text, method"):
        run(spec, out)


def test_ranges_share_out_what_is_left_to_do() -> None:
    assert ranges(range(8), 8, 2) == [range(4), range(4, 8)]
    assert ranges([5, 6, 7], 8, 2) == [range(6), range(6, 8)]
    assert ranges([3], 8, 4) == [range(8)]
    assert ranges([], 8, 4) == [range(8)]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"kind": "ptq161"}, "its strategy is exact"),
        ({"kind": "septq", "bits": 3}, "propagation block; found linear"),
        ({"kind": "gptq", "bits": 3, "propagation": "tap"}, "propagation block; found tap"),
    ],
)
def test_what_cannot_be_independent_is_refused_at_once(
    opt_mini: Path, texts: Path, method: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidJob, match=why) as caught:
        independent(opt_mini, texts, method)
    assert [path for path, _ in caught.value.details] == ["/strategy"]
