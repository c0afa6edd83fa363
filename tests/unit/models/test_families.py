"""Every family and variant: blocks run one by one are the model, and its taps are what its linears are called with."""

from pathlib import Path

import pytest
import torch
from model_forward import TOKENS_BS, forward
from safetensors.torch import save_file
from small_models import CONFIGS, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bitpress.errors import CheckpointError
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Tap
from bitpress_workers.models.skeleton import Skeleton, tap_inputs

WITH_EXPERTS = [name for name in CONFIGS if "moe" in name or "mixtral" in name]


@pytest.mark.parametrize("name", CONFIGS)
def test_block_by_block_equals_the_whole_model(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected_BSV = model(TOKENS_BS).logits

    logits_BSV = forward(Skeleton(Checkpoint.open(str(tmp_path))), TOKENS_BS)

    if name in WITH_EXPERTS:  # one product for each linear here, one for all experts in transformers
        torch.testing.assert_close(logits_BSV, expected_BSV, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(logits_BSV, expected_BSV)


@pytest.mark.parametrize("name", ["llama-scaled-rope", "gemma3"])
def test_half_precision_equals_the_whole_model(name: str, tmp_path: Path) -> None:
    build(name).to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        expected_BSV = model(TOKENS_BS).logits

    skeleton = Skeleton(Checkpoint.open(str(tmp_path)), dtype=torch.bfloat16)
    logits_BSV = forward(skeleton, TOKENS_BS)

    assert logits_BSV.dtype == torch.bfloat16
    assert torch.equal(logits_BSV, expected_BSV)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_linears_of_a_tap_get_one_input_in_the_order_described(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    skeleton = Skeleton(Checkpoint.open(str(tmp_path)))
    block, taps = skeleton.load_block(1), skeleton.taps(1)
    hidden_BSD, arguments = skeleton.enter(TOKENS_BS)
    seen: dict[str, Tensor] = {}
    for linear in (linear for tap in taps for linear in tap.linears):

        def listen(_: nn.Module, inputs: tuple[Tensor, ...], linear: str = linear) -> None:
            seen[linear] = inputs[0].flatten(0, -2)

        block.get_submodule(linear).register_forward_pre_hook(listen)
    tapped: dict[str, Tensor] = {}

    with tap_inputs(block, taps, tapped.__setitem__):
        skeleton.run_block(block, 1, hidden_BSD, arguments)

    assert [name for name in tapped if not name.startswith("experts.")] == [tap.name for tap in taps if not tap.routed]
    called = [tap for tap in taps if tap.name in tapped]
    assert sorted(seen) == sorted(linear for tap in called for linear in tap.linears)
    for tap in called:
        assert [linear for linear in seen if linear in tap.linears] == list(tap.linears)
        assert tap.routed or tapped[tap.name].shape[0] == TOKENS_BS.numel()
        assert all(torch.equal(seen[linear], tapped[tap.name]) for linear in tap.linears)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_tap_feeds_another_of_its_stage_or_of_one_before(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    skeleton = Skeleton(Checkpoint.open(str(tmp_path)))
    block, stages = skeleton.load_block(1), skeleton.stages(1)
    hidden_BSD, arguments = skeleton.enter(TOKENS_BS)

    def inputs_of(taps: tuple[Tap, ...]) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = {}
        with tap_inputs(block, taps, inputs.__setitem__):
            skeleton.run_block(block, 1, hidden_BSD, arguments)
        return inputs

    earlier: tuple[Tap, ...] = ()
    for stage in stages:
        earlier += stage
        before = inputs_of(earlier)
        for linear in (linear for tap in stage for linear in tap.linears):
            block.get_parameter(f"{linear}.weight").data.mul_(0.5)
        after = inputs_of(earlier)
        assert all(torch.equal(after[name], x_TI) for name, x_TI in before.items())


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_an_expert_sees_the_tokens_that_are_routed_to_it(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    skeleton = Skeleton(Checkpoint.open(str(tmp_path)))
    tokens_BS = TOKENS_BS[:1, :2]
    block, (hidden_BSD, arguments) = skeleton.load_block(1), skeleton.enter(tokens_BS)
    inputs: dict[str, Tensor] = {}

    with tap_inputs(block, skeleton.taps(1), inputs.__setitem__):
        skeleton.run_block(block, 1, hidden_BSD, arguments)

    routed = {name: x_TI for name, x_TI in inputs.items() if name.startswith("experts.") and name.endswith("input")}
    assert sum(len(x_TI) for x_TI in routed.values()) == 2 * tokens_BS.numel()  # two experts a token
    assert len(routed) < skeleton._model.config.num_experts  # so some expert saw none, which is no error


def test_a_block_without_experts_has_other_taps(tmp_path: Path) -> None:
    build("qwen2_moe").save_pretrained(tmp_path)
    skeleton = Skeleton(Checkpoint.open(str(tmp_path)))

    assert [tap.name for tap in skeleton.taps(0)][2:] == ["mlp_input", "mlp_output"]
    shared, routed = [tap.name for tap in skeleton.taps(1)][2:4], [tap.name for tap in skeleton.taps(1)][4:]
    assert shared == ["shared_expert_input", "shared_expert_output"]
    assert routed == [f"experts.{number}.{side}" for side in ("input", "output") for number in range(6)]
    assert skeleton.stages(1)[4] == tuple(tap for tap in skeleton.taps(1) if tap.name.endswith(".input"))


def test_experts_lie_on_disk_as_on_the_hub(tmp_path: Path) -> None:
    build("mixtral").save_pretrained(tmp_path)
    names = Skeleton(Checkpoint.open(str(tmp_path))).block_tensor_names(2)

    moe = "model.layers.2.block_sparse_moe"
    assert names["model.layers.2.mlp.gate.weight"] == f"{moe}.gate.weight"
    for ours, theirs in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        assert names[f"model.layers.2.mlp.experts.5.{ours}.weight"] == f"{moe}.experts.5.{theirs}.weight"


def test_experts_that_lie_fused_on_disk_are_missed(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    model.config.save_pretrained(tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.0\.gate_proj\.weight and 53 more is missing"):
        Skeleton(Checkpoint.open(str(tmp_path)))
