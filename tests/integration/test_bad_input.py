"""What goes wrong gets a clear error with a stable code, and nothing published is lost or half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pipeline_helpers import block_hashes, make_spec, run

from bitpress.errors import (
    ArtifactError,
    CalibrationError,
    CheckpointError,
    Conflict,
    NumericalError,
    OutOfMemory,
    StoreError,
    UnsupportedModel,
)
from bitpress.jobs import Progress
from bitpress.loading import load
from bitpress_workers.local_run import run_local
from bitpress_workers.pipeline.plan import Devices

SPQR: dict[str, Any] = {"kind": "spqr", "bits": 3}


def stop_after_two_blocks(progress: Progress) -> None:
    if progress.blocks_done == 2:
        raise KeyboardInterrupt


def bitpress_run(spec: dict[str, Any], out: Path) -> subprocess.CompletedProcess[str]:
    path = out.with_suffix(".spec.json")
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "bitpress_workers", "run", str(path), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_fails_the_run_and_the_next_one_goes_on(
    opt_mini: Path, texts: Path, tiny_disk: Path, tmp_path: Path
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, evaluation={"datasets": []})
    out = tiny_disk / "out"
    with pytest.raises(StoreError, match="No space left on device"):
        run(spec, out)
    published = block_hashes(out)
    assert 1 <= len(published) < 4
    assert not (out / "manifest.json").exists()

    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    run(spec, out)
    run(spec, tmp_path / "undisturbed")
    assert block_hashes(out) == block_hashes(tmp_path / "undisturbed")
    assert published.items() <= block_hashes(out).items()


def test_a_text_that_is_too_short_is_found_before_any_work(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    seen: list[Progress] = []
    for part in ("calibration", "evaluation"):
        spec = make_spec(opt_mini, texts, SPQR)
        short = str(tmp_path / "short.txt")
        change = {"dataset": short} if part == "calibration" else {"datasets": (short,)}
        spec = spec.model_copy(update={part: getattr(spec, part).model_copy(update=change)})
        with pytest.raises(CalibrationError, match="128"):
            run_local(spec, tmp_path / part, seen.append)
    assert all(progress.phase == "preparing" for progress in seen)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), r"model\.decoder\.layers\.2\.fc1\.weight"), (None, r"model\.decoder\.layers\.2\.fc1\.weight")],
    ids=["not finite", "missing"],
)
def test_a_broken_tensor_is_named(
    opt_mini: Path, texts: Path, tmp_path: Path, value: float | None, message: str
) -> None:
    model = broken_copy(opt_mini, tmp_path / "model", "model.decoder.layers.2.fc1.weight", value)
    with pytest.raises(CheckpointError, match=message):
        run(make_spec(model, texts, {"kind": "rtn", "bits": 4}), tmp_path / "out")
    # A missing tensor is seen in the headers; a value only when its block is read.
    assert len(block_hashes(tmp_path / "out")) == (0 if value is None else 2)


def broken_copy(model: Path, copy: Path, name: str, value: float | None) -> Path:
    """A copy of a checkpoint with one tensor's first value replaced, or the tensor left out."""
    shutil.copytree(model, copy)
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name][0, 0] = value
    safetensors.torch.save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_a_checkpoint_that_changed_under_an_interrupted_run_is_noticed(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(opt_mini, model)
    spec = make_spec(model, texts, {"kind": "rtn", "bits": 4}, evaluation={"datasets": []})
    with pytest.raises(KeyboardInterrupt):
        run_local(spec, tmp_path / "out", stop_after_two_blocks)
    shutil.rmtree(model)
    broken_copy(opt_mini, model, "model.decoder.layers.1.fc1.weight", 0.5)
    with pytest.raises(Conflict, match="block 1 was published from another model"):
        run(spec, tmp_path / "out")


def test_what_is_no_decoder_is_refused(texts: Path, tmp_path: Path) -> None:
    model = tmp_path / "bert"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UnsupportedModel, match="not a decoder"):
        run(make_spec(model, texts, SPQR), tmp_path / "out")


def test_a_plan_that_does_not_fit_is_refused_with_both_numbers(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitpress_workers.local_run.local_devices", lambda: Devices("cpu", 2, 100 * 2**20))
    with pytest.raises(OutOfMemory, match=r"needs about \d+\.\d GiB on this host, which has 0\.1 GiB"):
        run(make_spec(opt_mini, texts, SPQR), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "code", "exit_code"),
    [
        ({"method": {"kind": "spqr", "bits": 99}}, "invalid-job", 5),
        ({"model": {"uri": "/no/such/model"}}, "bad-checkpoint", 1),
        ({"surprise": 1}, "invalid-job", 5),
    ],
    ids=["out of range", "no model", "unknown field"],
)
def test_the_command_line_says_code_and_path(
    opt_mini: Path, texts: Path, tmp_path: Path, change: dict[str, Any], code: str, exit_code: int
) -> None:
    spec = make_spec(opt_mini, texts, SPQR).model_dump(mode="json") | change
    done = bitpress_run(spec, tmp_path / "out")
    assert done.returncode == exit_code
    assert f"error [{code}]: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_zero_activations_and_constant_rows_are_in_the_ledger(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(opt_mini, model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.weight"][:16] = 0
    tensors["model.decoder.layers.0.fc1.bias"][:16] = -1  # ReLU: sixteen inputs of fc2 are always zero
    safetensors.torch.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    report = run(make_spec(model, texts, SPQR), tmp_path / "out")
    entries = {(entry.kind, entry.where): entry.detail for entry in report.ledger}
    assert int(entries["dead-columns", "block 0, tap mlp_output"].split()[0]) >= 16
    assert int(entries["constant-groups", "block 0, fc1"].split()[0]) == 16 * 256 // 16
    assert all(torch.isfinite(torch.tensor(p.compressed)) for p in report.perplexity.values())


def test_a_published_block_that_changed_is_not_built_upon(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = make_spec(opt_mini, texts, {"kind": "rtn", "bits": 4}, evaluation={"datasets": []})
    with pytest.raises(KeyboardInterrupt):
        run_local(spec, tmp_path / "out", stop_after_two_blocks)
    block = tmp_path / "out" / "blocks" / "00000.safetensors"
    data = bytearray(block.read_bytes())
    data[-1] ^= 1
    block.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"00000.safetensors: its content has changed"):
        run(spec, tmp_path / "out")


def test_embeddings_that_changed_under_an_interrupted_run_are_noticed(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(opt_mini, model)
    spec = make_spec(model, texts, {"kind": "rtn", "bits": 4}, evaluation={"datasets": []})
    with pytest.raises(KeyboardInterrupt):
        run_local(spec, tmp_path / "out", stop_after_two_blocks)
    shutil.rmtree(model)
    broken_copy(opt_mini, model, "model.decoder.embed_tokens.weight", 0.5)
    with pytest.raises(Conflict, match="block 0 was published from another model"):
        run(spec, tmp_path / "out")


def test_windows_longer_than_the_model_are_refused_at_once(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    evaluation = {"datasets": [str(texts / "evaluation.txt")], "sequence_length": 1024}
    spec = make_spec(opt_mini, texts, SPQR, evaluation=evaluation)
    with pytest.raises(CalibrationError, match=r"evaluation.sequence_length: expected at most 512"):
        run(spec, tmp_path / "out")
    assert block_hashes(tmp_path / "out") == {}
    # The same directory serves the corrected spec.
    run(make_spec(opt_mini, texts, SPQR), tmp_path / "out")


def test_activations_that_overflow_are_named(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(opt_mini, model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    name = "model.decoder.layers.1.fc1.bias"
    tensors[name] = torch.full_like(tensors[name], 1e25, dtype=torch.float32)
    safetensors.torch.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericalError, match=r"model\.decoder\.layers\.1, tap mlp_output"):
        run(make_spec(model, texts, {"kind": "rtn", "bits": 4}), tmp_path / "out")


def test_a_loss_that_is_no_perplexity_is_kept_with_the_artifact(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(opt_mini, model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["model.decoder.final_layer_norm.weight"] *= 1e4
    safetensors.torch.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    report = run(make_spec(model, texts, {"kind": "rtn", "bits": 4}, gate={"kl_max": 1.0}), tmp_path / "out")
    (failure,) = report.failures
    assert (failure.part, failure.code) == ("quality", "numerical-failure")
    assert "evaluation.txt: a window's mean loss is" in failure.message
    assert report.perplexity == {} and report.gate_misses is None
    problem = report.problem()
    assert problem is not None and problem.code == "evaluation-failed"
    assert "numerical-failure" in (tmp_path / "out" / "report.md").read_text()
    load(tmp_path / "out")


def test_two_runs_do_not_share_a_directory(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = make_spec(opt_mini, texts, {"kind": "rtn", "bits": 4}, evaluation={"datasets": []})
    refused = []

    def start_another(progress: Progress) -> None:
        if progress.blocks_done == 1 and not refused:
            with pytest.raises(Conflict, match="another run is under way") as caught:
                run(spec, tmp_path / "out")
            refused.append(caught.value)

    run_local(spec, tmp_path / "out", start_another)
    assert refused


def test_a_mark_that_is_broken_is_a_conflict(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "bitpress-run.json").write_text("")
    with pytest.raises(Conflict, match="not the mark of an interrupted run"):
        run(make_spec(opt_mini, texts, SPQR), tmp_path)
