"""Jobs on models with experts: every expert is solved on the tokens that came to it, and a starved one is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import block_hashes, make_spec, run
from random_models import write_byte_tokenizer
from small_models import build
from transformers import AutoModelForCausalLM

from bitpress.loading import load

METHODS: list[dict[str, Any]] = [
    {"kind": "rtn", "bits": 4},
    {"kind": "gptq", "bits": 4, "group_size": 16, "propagation": "tap"},
    {"kind": "spqr", "bits": 4},
    {"kind": "septq", "bits": 4},
    {"kind": "ptq161", "epochs": 1},
]
SHORT = {
    "calibration": {"num_sequences": 5, "sequence_length": 32},
    "evaluation": {"sequence_length": 32, "max_sequences": 3},
}


def write_model(directory: Path, name: str) -> Path:
    model = build(name, vocab_size=256)
    model.half().save_pretrained(directory)
    write_byte_tokenizer(directory)
    return directory


def short(model: Path, texts: Path, method: dict[str, Any], **more: Any) -> Any:
    spec = make_spec(model, texts, method, **more)
    calibration = spec.calibration.model_copy(update=SHORT["calibration"])
    return spec.model_copy(
        update={"calibration": calibration, "evaluation": spec.evaluation.model_copy(update=SHORT["evaluation"])}
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["kind"]))
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_a_job_on_experts_is_the_same_on_any_fleet_and_loads(
    name: str, method: dict[str, Any], texts: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", name)
    hashes = []
    for devices in (1, 3):
        report = run(short(model, texts, method, devices=devices), tmp_path / f"on-{devices}")
        hashes.append(block_hashes(tmp_path / f"on-{devices}"))
    assert hashes[0] == hashes[1]
    loaded = load(tmp_path / "on-1")
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = torch.arange(40)[None] + 30
    assert loaded(tokens).logits.shape == dense(tokens).logits.shape
    assert torch.isfinite(loaded(tokens).logits).all()
    experts = [linear for block in report.blocks for linear in block.linears if ".experts." in linear.name]
    assert {linear.num_tokens for linear in experts} != {160}  # all of the tokens would be 5 * 32
    routed = sum(linear.num_tokens for linear in report.blocks[-1].linears if linear.name.endswith("down_proj"))
    assert routed >= 2 * 160  # every token goes to two experts


def test_an_expert_that_saw_too_few_tokens_is_named(texts: Path, tmp_path: Path) -> None:
    """With a router that always chooses the same two of six experts the others see nothing, and say so."""
    model = build("mixtral", vocab_size=256)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all logits equal: top-k takes the same ones for every token
    model.half().save_pretrained(tmp_path / "model")
    write_byte_tokenizer(tmp_path / "model")
    report = run(short(tmp_path / "model", texts, {"kind": "gptq", "bits": 4}), tmp_path / "out")
    starved = [entry for entry in report.ledger if entry.kind == "starved-expert"]
    silent = [linear for linear in report.blocks[0].linears if linear.num_tokens == 0]
    numbers = {linear.name.split(".")[-2] for linear in silent}
    assert len(numbers) == 4
    assert {entry.where for entry in starved if entry.where.startswith("block 0,")} == {
        f"block 0, tap experts.{n}.{side}" for n in numbers for side in ("input", "output")
    }
    assert all("0 tokens" in entry.detail for entry in starved)
    # Rounded as if no input mattered more than another, not zeroed as if all were dead.
    assert all(linear.relative_error < 0.1 for linear in silent)
    assert not [entry for entry in report.ledger if entry.kind == "dead-columns"]
