"""A model of which only one block is in memory: what it reads, holds and refuses."""

import gc
from pathlib import Path

import pytest
import torch
from model_forward import TOKENS_BS, forward
from safetensors.torch import load_file, save_file
from small_models import build
from torch import Tensor, nn

from bitpress.errors import CalibrationError, CheckpointError, UnsupportedModel
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import FAMILIES, Family, Tap
from bitpress_workers.models.skeleton import Skeleton, tap_inputs


@pytest.mark.parametrize("name", ["llama-tied", "opt", "opt-350m", "bloom", "falcon-rw"])
def test_checkpoint_saved_without_the_base_models_prefix(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.base_model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path))
    skeleton = Skeleton(checkpoint)
    with torch.no_grad():
        expected_BSV = model(TOKENS_BS).logits

    assert not any(stored.startswith(f"{model.base_model_prefix}.") for stored in checkpoint.tensors)
    assert torch.equal(forward(skeleton, TOKENS_BS), expected_BSV)
    assert set(skeleton.block_tensor_names(1).values()) <= set(checkpoint.tensors)


def test_blocks_may_be_called_with_different_arguments(tmp_path: Path) -> None:
    build("qwen2-mixed").save_pretrained(tmp_path)
    _, arguments = Skeleton(Checkpoint.open(str(tmp_path))).enter(TOKENS_BS)

    assert arguments[0]["attention_mask"] is None
    assert arguments[1]["attention_mask"] is not None


def test_taps_are_silent_after_the_context(llama: Path) -> None:
    skeleton = Skeleton(Checkpoint.open(str(llama)))
    block, (hidden_BSD, arguments) = skeleton.load_block(0), skeleton.enter(TOKENS_BS)
    calls: list[str] = []
    with tap_inputs(block, skeleton.taps(0)[:1], lambda tap, _: calls.append(tap)):
        skeleton.run_block(block, 0, hidden_BSD, arguments)
    skeleton.run_block(block, 0, hidden_BSD, arguments)

    assert calls == ["attention_input"]


def test_linear_that_is_bypassed_is_refused(tmp_path: Path) -> None:
    model = build("bloom")
    model.config.pretraining_tp, model.config.slow_but_exact = 2, True  # BLOOM multiplies by slices of its weights
    model.save_pretrained(tmp_path)
    skeleton = Skeleton(Checkpoint.open(str(tmp_path)))
    block, (hidden_BSD, arguments) = skeleton.load_block(0), skeleton.enter(TOKENS_BS)

    with (
        pytest.raises(UnsupportedModel, match=r"self_attention\.dense, mlp\.dense_4h_to_h"),
        tap_inputs(block, skeleton.taps(0), lambda *_: None),
    ):
        skeleton.run_block(block, 0, hidden_BSD, arguments)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "opt-350m", "bloom", "gpt_neox", "mixtral", "qwen2_moe"])
def test_outer_and_block_tensors_are_the_whole_checkpoint(name: str, tmp_path: Path) -> None:
    build(name).to(torch.float16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    skeleton = Skeleton(Checkpoint.open(str(tmp_path)))
    outer, names = skeleton.outer_tensors(), skeleton.outer_tensor_names()
    inside = [theirs for index in range(skeleton.num_blocks) for theirs in skeleton.block_tensor_names(index).values()]

    assert sorted([*names.values(), *inside]) == sorted(stored)
    assert {tensor.dtype for tensor in outer.values()} == {torch.float16}
    assert all(torch.equal(tensor, stored[names[ours]]) for ours, tensor in outer.items())


def test_weight_of_the_head_stored_in_place_of_the_tied_embedding(tmp_path: Path) -> None:
    model = build("llama-tied")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        expected_BSV = model(TOKENS_BS).logits

    assert torch.equal(forward(Skeleton(Checkpoint.open(str(tmp_path))), TOKENS_BS), expected_BSV)


def test_a_dropped_block_leaves_no_memory_behind(llama: Path) -> None:
    def held_bytes() -> int:
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter) and not o.is_meta]
        return sum(tensor.nbytes for tensor in tensors)

    skeleton = Skeleton(Checkpoint.open(str(llama)))
    before = held_bytes()
    block = skeleton.load_block(0)
    assert held_bytes() > before
    del block
    assert held_bytes() == before


def test_sequences_longer_than_the_models_positions(llama: Path) -> None:
    with pytest.raises(CalibrationError, match="sequences of 65 tokens; the model has 64 positions"):
        Skeleton(Checkpoint.open(str(llama))).enter(torch.zeros(1, 65, dtype=torch.int64))


def _edit(path: Path, name: str, tensor: Tensor | None) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors if tensor is None else tensors | {name: tensor}, path / "model.safetensors")


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (UP, None, f"the tensor {UP} is missing"),
        ("model.norm.weight", None, "the tensor model.norm.weight is missing"),
        ("lm_head.weight", None, "the tensor lm_head.weight is missing"),
        (UP, torch.zeros(44, 31), f"expected {UP} of shape [44, 32] by config.json, found [44, 31]"),
        (UP, torch.zeros(44, 32, dtype=torch.int8), f"expected {UP} in floating point, found torch.int8"),
        ("model.norm.weight", torch.full((32,), torch.nan), "model.norm.weight has values that are NaN or infinite"),
    ],
)
def test_broken_tensor_is_named_before_any_work(llama: Path, name: str, tensor: Tensor | None, message: str) -> None:
    _edit(llama, name, tensor)

    with pytest.raises(CheckpointError) as caught:
        Skeleton(Checkpoint.open(str(llama)))

    assert message in caught.value.message


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, torch.float32), (1e6, torch.float16)])
def test_weight_of_a_block_that_is_not_finite(llama: Path, value: float, dtype: torch.dtype) -> None:
    _edit(llama, UP, torch.full((44, 32), value))
    skeleton = Skeleton(Checkpoint.open(str(llama)), dtype=dtype)
    skeleton.load_block(0)

    with pytest.raises(CheckpointError, match=rf"{UP} has values that are NaN or infinite in {dtype}"):
        skeleton.load_block(1)


def test_blocks_with_linears_that_are_not_described(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    incomplete = Family("llama", "model.layers", (Tap("attention_input", ("self_attn.q_proj",)),))
    monkeypatch.setitem(FAMILIES, "llama", incomplete)

    with pytest.raises(UnsupportedModel, match=r"described with the linears \['self_attn\.q_proj'\], found \['mlp"):
        Skeleton(Checkpoint.open(str(llama)))
