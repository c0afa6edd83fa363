"""What a job says of its result's quality equals what both whole models say, opened with transformers."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import make_spec, run
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitpress.artifacts import Report
from bitpress.errors import InvalidJob
from bitpress.loading import load
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import evaluation_windows, tokens_sha256

SPQR = {"kind": "spqr", "bits": 2}


def hidden_states(model: PreTrainedModel, windows_KS: Tensor) -> tuple[Tensor, Tensor]:
    """Float64: log-probabilities [K, S, V]; hidden states before each block and behind the last [blocks + 1, ...]."""
    found: list[Tensor] = []
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    hooks = [block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for block in blocks]
    hooks.append(
        blocks[-1].register_forward_hook(
            lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
    )
    with torch.no_grad():
        logits_KSV = model(windows_KS, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits_KSV.double().log_softmax(-1), torch.stack(found).double()


def test_every_metric_is_that_of_the_whole_models(mini_model: Path, texts: Path, tmp_path: Path) -> None:
    report = run(make_spec(mini_model, texts, SPQR, devices=2), tmp_path / "out")
    dataset = str(texts / "evaluation.txt")
    windows = evaluation_windows(dataset, 128, 6, Checkpoint.open(str(mini_model)).tokenizer())
    windows_KS = windows.tokens_KS
    dense = AutoModelForCausalLM.from_pretrained(mini_model, dtype=torch.float32)
    (p_KSV, dense_states), (q_KSV, states) = (hidden_states(m, windows_KS) for m in (dense, load(tmp_path / "out")))

    p_KSV, q_KSV = p_KSV[:, :-1], q_KSV[:, :-1]
    divergence, quality = report.divergence[dataset], report.perplexity[dataset]
    assert divergence.kl == pytest.approx(float((p_KSV.exp() * (p_KSV - q_KSV)).sum(-1).mean()), rel=1e-4)
    assert divergence.agreement == pytest.approx(float((p_KSV.argmax(-1) == q_KSV.argmax(-1)).double().mean()))
    losses = [-x_KSV.gather(2, windows_KS[:, 1:, None]).mean() for x_KSV in (p_KSV, q_KSV)]
    assert [quality.dense, quality.compressed] == pytest.approx([float(loss.exp()) for loss in losses], rel=1e-5)
    assert quality.increase_percent == pytest.approx(100 * (quality.compressed / quality.dense - 1))
    assert windows.num_bytes is not None
    bits = [float(loss) * 127 * 6 / log(2) / sum(windows.num_bytes) for loss in losses]
    assert [quality.dense_bits_per_byte, quality.compressed_bits_per_byte] == pytest.approx(bits, rel=1e-5)
    growth = (states - dense_states).square().flatten(1).sum(1) / dense_states.square().flatten(1).sum(1)
    assert list(report.error_growth) == pytest.approx(growth[1:].tolist(), rel=1e-3)
    assert growth[0] == 0 < growth[-1]
    assert (quality.num_windows, quality.num_tokens) == (6, 6 * 128)
    assert quality.tokens_sha256 == tokens_sha256(windows_KS)
    for value, interval in (
        (quality.dense, quality.dense_interval),
        (quality.compressed, quality.compressed_interval),
        (quality.increase_percent, quality.increase_interval),
        (divergence.kl, divergence.kl_interval),
        (divergence.agreement, divergence.agreement_interval),
    ):
        assert interval is not None and interval.low < value < interval.high


def test_two_texts_are_evaluated_as_each_alone_on_any_number_of_shards(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text((texts / "calibration.txt").read_text())
    names = [str(texts / "evaluation.txt"), str(tmp_path / "other.txt")]

    def evaluated(out: str, datasets: list[str], devices: int) -> Report:
        evaluation: dict[str, Any] = {"datasets": datasets, "sequence_length": 128, "max_sequences": 5}
        return run(make_spec(opt_mini, texts, SPQR, evaluation=evaluation, devices=devices), tmp_path / out)

    both, on_three = evaluated("both", names, 1), evaluated("three", names, 3)
    assert (on_three.perplexity, on_three.divergence) == (both.perplexity, both.divergence)
    assert on_three.error_growth == both.error_growth
    first = evaluated("first", names[:1], 1)
    assert first.divergence[names[0]].kl == pytest.approx(both.divergence[names[0]].kl, rel=1e-5)
    assert list(both.perplexity) == names


@pytest.mark.parametrize(
    ("gate", "missed"),
    [
        ({"perplexity_increase_percent": 1000, "kl_max": 10, "agreement_min": 0.01}, []),
        ({"perplexity_increase_percent": -50, "kl_max": 10}, ["perplexity_increase_percent"]),
        ({"kl_max": 0, "agreement_min": 1}, ["kl_max", "agreement_min"]),
    ],
)
def test_a_result_that_misses_its_gate_is_kept(
    opt_mini: Path, texts: Path, tmp_path: Path, gate: dict[str, float], missed: list[str]
) -> None:
    report = run(make_spec(opt_mini, texts, SPQR, gate=gate), tmp_path / "out")
    assert report.gate_misses is not None
    assert [miss.metric for miss in report.gate_misses] == missed
    problem = report.problem()
    assert (problem.code if problem else None) == ("gate-failed" if missed else None)
    assert (tmp_path / "out" / "manifest.json").exists() and not (tmp_path / "out" / "bitpress-run.json").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("passes its gate" in page) == (not missed) and ("gate-failed" in page) == bool(missed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gate": {"kl_max": 1}, "evaluation": {"datasets": []}}, "/gate: .*kl_max: not evaluated"),
        ({"gate": {}}, "/gate: .*a gate without a limit"),
        ({"gate": {"agreement_min": 2}}, "/gate/agreement_min"),
    ],
)
def test_a_gate_on_what_is_not_evaluated_is_refused(
    opt_mini: Path, texts: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        make_spec(opt_mini, texts, SPQR, **overrides)
