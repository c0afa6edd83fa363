"""One job from spec to artifact, in this process, on small trained models."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import block_hashes, make_spec, run
from random_models import write_byte_tokenizer
from small_models import build
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitpress.artifacts import Manifest, Report
from bitpress.errors import Conflict
from bitpress.jobs import Progress
from bitpress.loading import load
from bitpress_workers.local_run import run_local
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import evaluation_windows

METHODS: list[dict[str, Any]] = [
    {"kind": "rtn", "bits": 4, "group_size": 32},
    {"kind": "gptq", "bits": 3, "group_size": 64, "order": "activation", "propagation": "linear"},
    {"kind": "spqr", "bits": 3},
    {"kind": "septq", "bits": 3, "retained_percent": 1.0},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["kind"]))
def test_a_job_leaves_an_artifact_that_loads_as_it_was_calibrated(
    mini_model: Path, texts: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    report = run(make_spec(mini_model, texts, method), tmp_path / "out")
    dataset = str(texts / "evaluation.txt")
    quality = report.perplexity[dataset]
    checkpoint = Checkpoint.open(str(mini_model))
    windows_KS = evaluation_windows(dataset, 128, 6, checkpoint.tokenizer()).tokens_KS
    dense = AutoModelForCausalLM.from_pretrained(mini_model, dtype=torch.float32)
    assert quality.dense == pytest.approx(perplexity(dense, windows_KS), rel=1e-5)
    assert quality.compressed == pytest.approx(perplexity(load(tmp_path / "out"), windows_KS), rel=1e-5)
    assert quality.compressed == pytest.approx(quality.dense, rel=0.2)
    assert quality.compressed != quality.dense


def perplexity(model: PreTrainedModel, windows_KS: Tensor) -> float:
    """By the whole model, window by window."""
    with torch.no_grad():
        losses = [model(window[None], labels=window[None]).loss.double() for window in windows_KS]
    return float(torch.stack(losses).mean().exp())


def test_the_report_adds_up(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    report = run(make_spec(opt_mini, texts, {"kind": "spqr", "bits": 3}), tmp_path / "out")
    on_disk = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert on_disk == report
    linears = [linear for block in report.blocks for linear in block.linears]
    assert len(report.blocks) == 4 and len(linears) == 4 * 6
    assert report.num_weights == sum(linear.shape[0] * linear.shape[1] for linear in linears)
    assert report.bytes_before == 2 * report.num_weights
    assert report.bits_per_weight == pytest.approx(8 * report.bytes_after / report.num_weights)
    # 3 bits, 6 / 16 for the codes of scales and zeros, 64 / 256 for their grids, 32 for each outlier, pointers.
    outliers = sum(linear.outlier_fraction * linear.shape[0] * linear.shape[1] for linear in linears)
    nominal = 3 + 6 / 16 + 64 / 256 + 32 * outliers / report.num_weights
    assert nominal < report.bits_per_weight < nominal + 0.2
    assert {linear.num_tokens for linear in linears} == {1280}
    assert set(report.phases) == {"preparing", "calibrating", "evaluating", "checking"}
    assert report.peak_bytes > 100 * 2**20
    assert "relative error" in (tmp_path / "out" / "report.md").read_text()


def test_the_bytes_reported_are_the_bytes_on_disk(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    report = run(make_spec(opt_mini, texts, {"kind": "septq", "bits": 2}), tmp_path / "out")
    in_files = 0
    for path in (tmp_path / "out" / "blocks").glob("*.safetensors"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        names = json.loads(header.pop("__metadata__")["bitpress"])
        for name, info in header.items():
            module, _, suffix = name.rpartition(".")
            if module in names and suffix != "bias":
                in_files += info["data_offsets"][1] - info["data_offsets"][0]
    assert in_files == report.bytes_after


def test_the_manifest_lists_every_file_with_its_hash(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(make_spec(opt_mini, texts, {"kind": "rtn", "bits": 3}), out)
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    on_disk = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {"manifest.json"}
    assert {file.name for file in manifest.files} == on_disk
    for file in manifest.files:
        data = (out / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: str(method["kind"]))
def test_any_number_of_shards_gives_the_same_bytes(
    mini_model: Path, texts: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    evaluation: dict[str, Any] = {"datasets": []}
    hashes = []
    for shards in (1, 2, 3, 8):
        out = tmp_path / str(shards)
        run(make_spec(mini_model, texts, method, devices=shards, evaluation=evaluation), out)
        hashes.append(block_hashes(out))
    assert len(hashes[0]) == 4
    assert all(found == hashes[0] for found in hashes)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = make_spec(opt_mini, texts, {"kind": "spqr", "bits": 3})
    undisturbed = run(spec, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.blocks_done == 2 and progress.linear == "fc1":
            raise KeyboardInterrupt

    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run_local(spec, out, interrupt)
    assert len(block_hashes(out)) == 2 and not (out / "manifest.json").exists()
    first_blocks = {path: path.stat().st_mtime_ns for path in (out / "blocks").glob("*.safetensors")}

    seen: list[int] = []
    resumed = run_local(
        spec.model_copy(update={"devices": 3}),
        out,
        lambda progress: seen.append(progress.blocks_done) if progress.linear else None,
    )
    assert min(seen) == 2, "published blocks are not computed again"
    assert all(path.stat().st_mtime_ns == time for path, time in first_blocks.items())
    assert block_hashes(out) == block_hashes(tmp_path / "whole")
    assert resumed.perplexity == undisturbed.perplexity


def test_a_directory_of_another_job_is_refused(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = make_spec(opt_mini, texts, {"kind": "rtn", "bits": 3})
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(Conflict, match="not empty"):
        run(spec, tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "mine"
    run(spec, tmp_path / "out")
    with pytest.raises(Conflict, match="not empty"):
        run(spec, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").exists()


def test_the_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary(texts: Path, tmp_path: Path) -> None:
    model = build("llama", vocab_size=256)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    write_byte_tokenizer(tmp_path / "model")
    sizes = {"sequence_length": 32, "max_sequences": 3}
    evaluation = {"datasets": [str(texts / "evaluation.txt")], **sizes}
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 2, "sequence_length": 32}
    spec = make_spec(
        tmp_path / "model", texts, {"kind": "rtn", "bits": 4}, evaluation=evaluation, calibration=calibration
    )
    (quality,) = run(spec, tmp_path / "out").perplexity.values()
    assert (quality.dense, quality.compressed) == (pytest.approx(256), pytest.approx(256))
