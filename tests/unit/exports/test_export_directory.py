"""An export is a checkpoint of the same family: the same tensor names, for the same tools."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import build
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitpress.errors import InvalidJob
from bitpress.exports import Export
from bitpress.methods import RTNConfig
from bitpress_workers.exports import Piece, check_shapes, create_target, export_files
from bitpress_workers.methods import compress
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline

METHOD = RTNConfig(bits=4, symmetric=True)
MODELS = [
    "llama", "llama-tied", "llama-biases", "gemma2", "phi", "opt", "opt-350m", "bloom", "falcon-40b", "gpt_neox",
    "mixtral", "qwen2_moe",
]  # fmt: skip
SAVED_WITHOUT_HEAD = ["llama-tied", "opt-350m", "bloom"]


def save(name: str, path: Path, *, without_head: bool = False) -> Checkpoint:
    model = build(name)
    (model.base_model if without_head else model).save_pretrained(path)
    return Checkpoint.open(str(path))


def compressed_pieces(checkpoint: Checkpoint) -> Iterator[Piece]:
    """A model, compressed linear by linear."""
    outline = Outline(checkpoint)
    yield Piece(checkpoint.read(outline.outer_tensor_names().values()), {}, ())
    for index in range(outline.num_blocks):
        names = outline.block_tensor_names(index)
        stored = checkpoint.read(names.values())
        modules = [f"{outline.block_name(index)}.{name}" for tap in outline.taps(index) for name in tap.linears]
        weights = [names[f"{module}.weight"] for module in modules]
        linears = {weight: compress(stored.pop(weight), None, METHOD) for weight in weights}
        yield Piece(stored, linears, modules)


def export(checkpoint: Checkpoint, pieces: list[Piece], name: Export, path: Path) -> Path:
    for file, data in export_files([create_target(name, METHOD)], checkpoint, pieces, len(pieces)):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(data)
    return path / "exports" / name


def open_fully(path: Path) -> PreTrainedModel:
    """Open a checkpoint that must have all the model needs and nothing else."""
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16, output_loading_info=True)
    assert not any(info.values()), info
    return model


def check_exports(checkpoint: Checkpoint, path: Path) -> None:
    pieces = list(compressed_pieces(checkpoint))
    dense, packed = (export(checkpoint, pieces, name, path) for name in ("dense", "pack_quantized"))
    expected: dict[str, Tensor] = {}
    for piece in pieces:
        expected |= piece.tensors
        expected |= {name: linear.dequantize() for name, linear in piece.linears.items()}
    stored = {name: tensor for file in dense.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert stored.keys() == expected.keys() == load_file(checkpoint.path / "model.safetensors").keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    from_dense, from_packed = open_fully(dense).state_dict(), open_fully(packed).state_dict()
    assert from_dense.keys() == from_packed.keys()
    assert all(torch.equal(tensor, from_packed[name]) for name, tensor in from_dense.items())


@pytest.mark.parametrize("name", MODELS)
def test_every_family_goes_out_and_comes_back(name: str, tmp_path: Path) -> None:
    check_exports(save(name, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("name", SAVED_WITHOUT_HEAD)
def test_so_does_a_checkpoint_saved_without_its_head(name: str, tmp_path: Path) -> None:
    check_exports(save(name, tmp_path / "model", without_head=True), tmp_path)


def test_linears_outside_the_blocks_are_named_as_not_packed(tmp_path: Path) -> None:
    checkpoint = save("opt-350m", tmp_path / "model")
    path = export(checkpoint, list(compressed_pieces(checkpoint)), "pack_quantized", tmp_path)
    config = json.loads((path / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == [
        "lm_head", "model.decoder.project_in", "model.decoder.project_out",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "target", "method", "reason"),
    [
        ("opt", "gptq", {}, r"layers.0.fc1 \[44, 32\]: rows and columns must be multiples of 32"),
        ("opt", "gptq", {"group_size": 64}, r"q_proj \[32, 32\]: groups of 64 do not divide its 32 columns"),
        ("opt", "pack_quantized", {"group_size": 32}, r"layers.0.fc2 \[32, 44\]: groups of 32 do not divide"),
        ("mixtral", "pack_quantized", {}, r"layers.0.mlp.experts.0.gate_proj \[44, 32\]: .* zeros of experts"),
    ],
)
def test_a_model_that_a_target_cannot_hold_is_refused(
    model: str, target: Any, method: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    checkpoint = save(model, tmp_path)
    with pytest.raises(InvalidJob, match=f"{target} cannot hold model.*{reason}") as caught:
        check_shapes([create_target(target, RTNConfig(bits=4, **method))], Outline(checkpoint), checkpoint)
    assert [path for path, _ in caught.value.details] == ["/exports"]


@pytest.mark.parametrize("model", ["opt", "mixtral"])
def test_a_model_that_targets_hold_passes(model: str, tmp_path: Path) -> None:
    checkpoint = save(model, tmp_path)
    targets = [create_target("dense", METHOD), create_target("pack_quantized", METHOD)]
    check_shapes(targets, Outline(checkpoint), checkpoint)
