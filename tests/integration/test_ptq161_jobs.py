"""Jobs with PTQ1.61: any number of shards, a resume, and the restorative stage, on small models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import block_hashes, make_spec, run
from random_models import write_byte_tokenizer
from safetensors.torch import load_file
from small_models import build
from torch import Tensor
from transformers import AutoTokenizer

from bitpress.errors import NumericalError
from bitpress.formats import SalientBinary, from_tensors
from bitpress.jobs import Progress
from bitpress.loading import load
from bitpress_workers.local_run import run_local

METHOD: dict[str, Any] = {"kind": "ptq161", "epochs": 2}
SHORT: dict[str, Any] = {"num_sequences": 5, "sequence_length": 32}


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in three blocks, with the tokenizer of a trained model."""
    path = tmp_path_factory.mktemp("tiny-llama")
    opt_mini = Path(__file__).parents[1] / "data" / "opt-mini"
    tokenizer = AutoTokenizer.from_pretrained(opt_mini)
    model = build("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def short_spec(model: Path, texts: Path, method: dict[str, Any], **overrides: Any) -> Any:
    calibration = SHORT | {"dataset": str(texts / "calibration.txt")}
    evaluation = {"datasets": [str(texts / "evaluation.txt")], "sequence_length": 32, "max_sequences": 4}
    return make_spec(model, texts, method, **{"calibration": calibration, "evaluation": evaluation} | overrides)


@pytest.mark.parametrize("model", ["opt", "llama"])
def test_any_number_of_shards_gives_the_same_bytes(
    opt_mini: Path, tiny_llama: Path, texts: Path, tmp_path: Path, model: str
) -> None:
    path = opt_mini if model == "opt" else tiny_llama
    reports, hashes = [], []
    for shards in (1, 2, 3, 8):
        out = tmp_path / str(shards)
        reports.append(run(short_spec(path, texts, METHOD, devices=shards), out))
        hashes.append(block_hashes(out))
    assert all(found == hashes[0] for found in hashes)
    assert all(found.perplexity == reports[0].perplexity for found in reports)
    for blocks in zip(*(report.blocks for report in reports), strict=True):
        assert len({block.training_losses for block in blocks}) == 1
        assert len({linear.relative_error for block in blocks for linear in block.linears[:1]}) == 1


def test_training_lowers_the_loss_and_what_loads_is_what_was_evaluated(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    untrained = run(make_spec(opt_mini, texts, METHOD | {"epochs": 0}), tmp_path / "untrained")
    trained = run(make_spec(opt_mini, texts, METHOD | {"epochs": 4}), tmp_path / "trained")
    dataset = str(texts / "evaluation.txt")
    assert all(block.training_losses == () for block in untrained.blocks)
    for block in trained.blocks:
        assert len(block.training_losses) == 4
        assert block.training_losses[-1] < block.training_losses[0]
        assert {linear.num_tokens for linear in block.linears} == {1280}
    assert trained.perplexity[dataset].dense == untrained.perplexity[dataset].dense
    assert trained.ledger == ()
    windows_KS = evaluation_tokens(opt_mini, texts)
    model = load(tmp_path / "trained")
    with torch.no_grad():
        losses = [model(window[None], labels=window[None]).loss.double() for window in windows_KS]
    perplexity = float(torch.stack(losses).mean().exp())
    assert perplexity == pytest.approx(trained.perplexity[dataset].compressed, rel=1e-5)


def evaluation_tokens(model: Path, texts: Path) -> Tensor:
    tokens = AutoTokenizer.from_pretrained(model)((texts / "evaluation.txt").read_text(), verbose=False).input_ids
    return torch.tensor(tokens[: 6 * 128]).view(6, 128)


def test_the_bits_reported_are_those_of_the_stored_tensors(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    report = run(short_spec(opt_mini, texts, METHOD), tmp_path / "out")
    in_files, linears = 0, 0
    for path in (tmp_path / "out" / "blocks").glob("*.safetensors"):
        sidecar = json.loads(path.with_suffix(".json").read_text())
        stored = load_file(path)
        for name, header in sidecar["headers"].items():
            parts = {
                key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")
            }
            parts.pop("bias")
            linear = from_tensors(header, parts)
            assert isinstance(linear, SalientBinary)
            in_files += linear.stored_bits()
            linears += 1
    assert linears == 4 * 6
    assert report.bits_per_weight == pytest.approx(in_files / report.num_weights)
    assert 1.6 < report.bits_per_weight < 2.2


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    spec = short_spec(opt_mini, texts, METHOD)
    undisturbed = run(spec, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.blocks_done == 2 and progress.fraction > 0.5 * 0.8:
            raise KeyboardInterrupt

    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run_local(spec, out, interrupt)
    assert len(block_hashes(out)) == 2
    resumed = run(spec.model_copy(update={"devices": 3}), out)
    assert block_hashes(out) == block_hashes(tmp_path / "whole")
    assert resumed.perplexity == undisturbed.perplexity


def test_a_loss_that_is_not_finite_names_the_block(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    method = METHOD | {"epochs": 5, "scale_learning_rate": 1e30, "rotation_learning_rate": 1e30}
    with pytest.raises(NumericalError, match=r"model\.decoder\.layers\.0: the loss of training step \d+ is"):
        run(short_spec(opt_mini, texts, method), tmp_path / "out")


def test_an_expert_that_too_few_tokens_reached_is_in_the_ledger(texts: Path, tmp_path: Path) -> None:
    build("qwen3_moe", vocab_size=256).save_pretrained(tmp_path / "model")
    write_byte_tokenizer(tmp_path / "model")
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 1, "sequence_length": 8}
    spec = make_spec(tmp_path / "model", texts, METHOD, calibration=calibration, evaluation={"datasets": []})
    report = run(spec, tmp_path / "out")
    starved = {
        f"block {block.index}, {linear.name}"
        for block in report.blocks
        for linear in block.linears
        if ".experts." in linear.name and linear.num_tokens < linear.shape[1]
    }
    assert any(not linear.num_tokens for block in report.blocks for linear in block.linears)
    assert {entry.where for entry in report.ledger if entry.kind == "starved-expert"} == starved
