"""Sweeps: several jobs that share each block, with the bytes that each would have alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import block_hashes, make_spec, run
from run_cli import bitpress

from bitpress.artifacts import Manifest
from bitpress.errors import Cancelled, Conflict, InvalidJob, NumericalError
from bitpress.jobs import Progress
from bitpress.sweep_results import Comparison
from bitpress.sweeps import SweepSpec, parse_submission
from bitpress_service.jobstore import BlockRecord
from bitpress_workers import local_run
from bitpress_workers.local_run import DirectoryRecorder, run_sweep
from bitpress_workers.methods.gptq import GPTQ
from bitpress_workers.methods.rtn import RTN
from bitpress_workers.numerics.hessian import Factor, Gram
from bitpress_workers.pipeline.fleet import LocalFleet
from bitpress_workers.pipeline.shard import Shard

METHODS: list[dict[str, Any]] = [
    {"kind": "gptq", "bits": 3, "group_size": 32},
    {"kind": "spqr", "bits": 3},
    {"kind": "gptq", "bits": 2, "group_size": 64},
    {"kind": "septq", "bits": 3, "propagation": "block"},
]


def sweep(model: Path, texts: Path, methods: list[dict[str, Any]], **overrides: Any) -> SweepSpec:
    job = make_spec(model, texts, methods[0], **overrides)
    parsed = parse_submission(json.loads(job.model_dump_json()) | {"method": methods})
    assert isinstance(parsed, SweepSpec)
    return parsed


def show(_: str, __: Progress) -> None:
    return None


@pytest.mark.parametrize("strategy", ["exact", "independent"])
def test_every_member_has_the_bytes_of_its_own_job(opt_mini: Path, texts: Path, tmp_path: Path, strategy: str) -> None:
    methods = [*METHODS[:3], METHODS[3] | {"propagation": "tap" if strategy == "exact" else "block"}]
    spec = sweep(opt_mini, texts, methods, strategy=strategy, devices=2)
    comparison = run_sweep(spec, tmp_path / "sweep", show)
    for name, alone in zip(spec.names(), spec.specs(), strict=True):
        report = run(alone, tmp_path / name)
        assert block_hashes(tmp_path / "sweep" / name) == block_hashes(tmp_path / name), name
        member = next(member for member in comparison.members if member.name == name)
        assert member.bits_per_weight == report.bits_per_weight
        assert member.perplexity == {text: found.compressed for text, found in report.perplexity.items()}
        manifests = [
            Manifest.model_validate_json((place / name / "manifest.json").read_text())
            for place in (tmp_path / "sweep", tmp_path)
        ]
        assert manifests[0].fingerprint == manifests[1].fingerprint
    bits = [member.bits_per_weight for member in comparison.members]
    assert bits == sorted(bits)
    on_disk = (tmp_path / "sweep" / "comparison.json").read_text()
    assert Comparison.model_validate_json(on_disk) == comparison


def test_independent_members_share_hessians_and_factors(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors: list[int] = []
    factor = GPTQ.factor

    def counted(self: GPTQ, gram: Gram) -> Factor:
        factors.append(gram.num_tokens)
        return factor(self, gram)

    monkeypatch.setattr(GPTQ, "factor", counted)
    methods = [{"kind": "gptq", "bits": bits} for bits in (2, 3, 4)] + [{"kind": "gptq", "bits": 3, "damping": 0.1}]
    run_sweep(sweep(opt_mini, texts, methods, strategy="independent", devices=1), tmp_path / "out", show)
    # 4 blocks of 4 taps (q, k and v; out; fc1; fc2); two ways of damping.
    assert len(factors) == 4 * 4 * 2


def test_each_block_is_loaded_once_for_all_members_and_the_dense_model_evaluated_once(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    advanced: list[str] = []
    load, advance = Shard.load, Shard.advance

    def counted_load(self: Shard, index: int) -> None:
        loads.append(index)
        load(self, index)

    def counted_advance(self: Shard, stream: str) -> None:
        advanced.append(stream)
        advance(self, stream)

    monkeypatch.setattr(Shard, "load", counted_load)
    monkeypatch.setattr(Shard, "advance", counted_advance)
    run_sweep(sweep(opt_mini, texts, METHODS[:3], devices=1), tmp_path / "out", show)
    assert loads == [0, 1, 2, 3] * 2
    assert advanced.count("dense") == 4


@pytest.mark.parametrize("strategy", ["exact", "independent"])
def test_a_member_that_fails_ends_alone_and_may_go_on_later(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """A Hessian that cannot be factorized, in the third block, for one member."""
    calls: list[Gram] = []

    def fail(self: RTN, gram: Gram) -> Factor:
        calls.append(gram)
        if len(calls) > 9:
            raise NumericalError("no factor")
        return RTN_FACTOR(self, gram)

    monkeypatch.setattr(RTN, "factor", fail)
    spec = sweep(opt_mini, texts, [{"kind": "rtn", "bits": 4}, METHODS[0]], strategy=strategy, devices=1)
    comparison = run_sweep(spec, tmp_path / "sweep", show)
    failed = comparison.members[-1]
    assert (failed.name, failed.error) == ("00-rtn", "numerical-failure")
    assert "model.decoder.layers.2" in failed.message
    monkeypatch.undo()
    run(spec.specs()[1], tmp_path / "alone")
    assert block_hashes(tmp_path / "sweep" / "01-gptq") == block_hashes(tmp_path / "alone")
    assert "numerical-failure" in (tmp_path / "sweep" / "comparison.md").read_text()

    finished = (tmp_path / "sweep" / "01-gptq" / "manifest.json").stat().st_mtime_ns
    assert [member.error for member in run_sweep(spec, tmp_path / "sweep", show).members] == [None, None]
    assert (tmp_path / "sweep" / "01-gptq" / "manifest.json").stat().st_mtime_ns == finished
    run(spec.specs()[0], tmp_path / "rtn")
    assert block_hashes(tmp_path / "sweep" / "00-rtn") == block_hashes(tmp_path / "rtn")


RTN_FACTOR = RTN.factor


@pytest.mark.parametrize("strategy", ["exact", "independent"])
def test_a_member_that_is_cancelled_leaves_the_fleet_to_the_others(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    class Cancelling(DirectoryRecorder):
        def block(self, record: BlockRecord) -> None:
            if self.directory.name == "00-gptq" and record.index == 1:
                raise Cancelled("the job was cancelled")

    fleets: list[LocalFleet] = []

    def make_fleet(*args: Any) -> LocalFleet:
        fleets.append(local_run_fleet(*args))
        return fleets[-1]

    local_run_fleet = local_run.make_local_fleet
    monkeypatch.setattr(local_run, "DirectoryRecorder", Cancelling)
    monkeypatch.setattr(local_run, "make_local_fleet", make_fleet)
    spec = sweep(opt_mini, texts, METHODS[:2], strategy=strategy, devices=1)
    comparison = run_sweep(spec, tmp_path / "sweep", show)
    assert {member.name: member.error for member in comparison.members} == {"00-gptq": "cancelled", "01-spqr": None}
    assert len(fleets) == 1
    run(spec.specs()[1], tmp_path / "alone")
    assert block_hashes(tmp_path / "sweep" / "01-spqr") == block_hashes(tmp_path / "alone")


def test_a_member_that_cannot_be_evaluated_keeps_its_artifact_and_the_others_their_evaluation(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first member's activations overflow in the third block; the second misses its gate."""
    advance = Shard.advance

    def overflow(self: Shard, stream: str) -> None:
        if (stream, self._block_index) == ("compressed 0", 2):
            raise NumericalError("an activation is not finite")
        advance(self, stream)

    monkeypatch.setattr(Shard, "advance", overflow)
    spec = sweep(opt_mini, texts, [{"kind": "rtn", "bits": 4}, METHODS[0]], gate={"kl_max": 0}, devices=2)
    members = {member.name: member for member in run_sweep(spec, tmp_path / "sweep", show).members}
    monkeypatch.undo()
    unmeasured, measured = members["00-rtn"], members["01-gptq"]
    assert (unmeasured.error, unmeasured.perplexity, unmeasured.kl) == ("evaluation-failed", {}, {})
    assert unmeasured.bits_per_weight is not None and "not finite" in unmeasured.message
    assert measured.error == "gate-failed"
    alone = run(spec.specs()[1], tmp_path / "alone")
    assert measured.perplexity == {text: found.compressed for text, found in alone.perplexity.items()}
    assert measured.kl == {text: found.kl for text, found in alone.divergence.items()}
    for name in spec.names():
        assert (tmp_path / "sweep" / name / "manifest.json").exists()
    page = (tmp_path / "sweep" / "comparison.md").read_text()
    assert "**evaluation-failed**" in page and "**gate-failed**" in page and f"{measured.kl.popitem()[1]:.5f}" in page


def test_an_interrupted_sweep_goes_on(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = sweep(opt_mini, texts, METHODS[:2], evaluation={"datasets": []}, devices=1)

    def interrupt(name: str, progress: Progress) -> None:
        if (name, progress.blocks_done, progress.linear) == ("01-spqr", 2, "fc1"):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(spec, out, interrupt)
    assert [len(block_hashes(out / name)) for name in spec.names()] == [3, 2]
    run_sweep(spec.model_copy(update={"devices": 3}), out, show)
    run_sweep(spec, tmp_path / "whole", show)
    for name in spec.names():
        assert block_hashes(out / name) == block_hashes(tmp_path / "whole" / name)


def test_a_directory_with_anything_else_is_refused(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(Conflict, match=r"diary\.txt"):
        run_sweep(sweep(opt_mini, texts, METHODS[:2]), tmp_path, show)


def test_what_all_need_fails_all(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = sweep(opt_mini, texts, METHODS[:2], evaluation={"datasets": [str(texts / "missing.txt")]})
    assert {member.error for member in run_sweep(spec, tmp_path / "out", show).members} == {"bad-calibration"}


BAD: Mapping[str, tuple[Any, str, str]] = {
    "one": ([METHODS[0]], "/method", "expected 2 to 64 methods, found 1"),
    "twice": ([METHODS[0], METHODS[0]], "/method", "methods 0 and 1 are the same"),
    "trained": ([METHODS[0], {"kind": "ptq161"}], "/method", "ptq161 trains whole blocks"),
    "out of range": ([METHODS[0], {"kind": "spqr", "bits": 99}], "/method/1/bits", "less than or equal to 8"),
    "unknown": ([METHODS[0], {"kind": "magic"}], "/method/1", "'magic' found using 'kind'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sweeps_are_refused_with_a_path(opt_mini: Path, texts: Path, name: str) -> None:
    methods, path, message = BAD[name]
    with pytest.raises(InvalidJob) as caught:
        sweep(opt_mini, texts, methods)
    ((found, why),) = caught.value.details
    assert found == path
    assert message in why


def test_the_command_line_runs_a_sweep(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = sweep(opt_mini, texts, [{"kind": "rtn", "bits": 3}, {"kind": "rtn", "bits": 4}])
    (tmp_path / "sweep.json").write_text(spec.model_dump_json())
    done = bitpress("run", str(tmp_path / "sweep.json"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out" / "comparison.md").read_text() + "\n"
