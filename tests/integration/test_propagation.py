"""What a Hessian sees of its own block, against a plain forward of the partly compressed model."""

from pathlib import Path

import pytest
import torch
from pipeline_helpers import make_spec, run
from torch import Tensor
from transformers import AutoModelForCausalLM

from bitpress.loading import load
from bitpress.methods import GPTQConfig
from bitpress_workers.methods import compress
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import calibration_tokens

BEFORE_FC2 = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1")


def share_equal(one: Tensor, other: Tensor) -> float:
    return float(torch.isclose(one, other, rtol=1e-5, atol=1e-7).float().mean())


@pytest.mark.parametrize("propagation", ["block", "tap", "linear"])
def test_the_last_linear_of_a_block_is_calibrated_on_what_the_scheme_says(
    propagation: str, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    method = {"kind": "gptq", "bits": 2, "propagation": propagation}
    spec = make_spec(opt_mini, texts, method, evaluation={"datasets": []})
    run(spec, tmp_path / "out")
    compressed = load(tmp_path / "out").model.decoder.layers[0]
    tokens_NS = calibration_tokens(spec.calibration, Checkpoint.open(str(opt_mini)).tokenizer())
    solved = compressed.fc2.compressed().dequantize()

    def resolved(linears_before: tuple[str, ...]) -> Tensor:
        """fc2 of block 0 by the method, its Hessian from a model whose block has these linears compressed."""
        dense = AutoModelForCausalLM.from_pretrained(opt_mini, dtype=torch.float32)
        block = dense.model.decoder.layers[0]
        for name in linears_before:
            block.get_submodule(name).weight.data = compressed.get_submodule(name).compressed().dequantize()
        hessian = torch.zeros(1024, 1024)
        block.fc2.register_forward_pre_hook(lambda _, inputs: add_gram(hessian, inputs[0]))
        with torch.no_grad():
            for tokens_S in tokens_NS:
                dense(tokens_S[None])
        return compress(block.fc2.weight.detach(), hessian, GPTQConfig(bits=2)).dequantize()

    as_it_was, with_linears_before = resolved(()), resolved(BEFORE_FC2)
    expected, other = (as_it_was, with_linears_before) if propagation == "block" else (with_linears_before, as_it_was)
    assert share_equal(solved, expected) > 0.99
    assert share_equal(solved, other) < 0.9


def add_gram(hessian_II: Tensor, x_BSI: Tensor) -> None:
    x_TI = x_BSI.reshape(-1, x_BSI.shape[-1])
    hessian_II += x_TI.T @ x_TI
