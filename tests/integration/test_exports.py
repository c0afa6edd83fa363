"""Exports of whole jobs, opened by the tools they are made for, against the artifact they were made from."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import make_spec, run
from random_models import write_byte_tokenizer
from safetensors.torch import load_file
from small_models import build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig, PreTrainedModel

from bitpress.artifacts import Manifest
from bitpress.errors import InvalidJob
from bitpress.loading import PackedLinear, load
from oracles.gptq_layout import read_weight

SYMMETRIC = {"kind": "rtn", "bits": 4, "group_size": 32, "symmetric": True}
WITH_ZEROS = {"kind": "rtn", "bits": 3, "group_size": 64}
BY_ROW = {"kind": "rtn", "bits": 8}
ACTIVATION_ORDER = {"kind": "gptq", "bits": 3, "group_size": 32, "symmetric": True, "order": "activation"}
STATIC_GROUPS = ACTIVATION_ORDER | {"static_groups": True}
STAYS_PACKED = CompressedTensorsConfig(dequantize=False)
overriding = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
UNEVALUATED: dict[str, Any] = {"evaluation": {"datasets": []}}


def export(model: Path, texts: Path, method: dict[str, Any], name: str, out: Path, **overrides: Any) -> Path:
    """Run a job with one export; returns the export's directory."""
    run(make_spec(model, texts, method, exports=[name], **UNEVALUATED, **overrides), out)
    return out / "exports" / name


def open_float32(path: Path, **arguments: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **arguments)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.arange(100, 148)[None]).logits
    return logits


def check_same(found: PreTrainedModel, artifact: Path, rounding: torch.dtype = torch.float32) -> None:
    """Every linear of `found` has the artifact's weight, rounded, and both models compute the same."""
    native = load(artifact)
    found_logits = logits(found)  # compressed-tensors decompresses with the first forward
    packed = {name: module for name, module in native.named_modules() if isinstance(module, PackedLinear)}
    assert len(packed) == 4 * len({name.rpartition(".")[2] for name in packed})
    for name, module in packed.items():
        weight = module.compressed().dequantize().to(rounding).float()
        assert torch.equal(found.get_parameter(f"{name}.weight"), weight), name
        dense = nn.Linear(module.in_features, module.out_features)
        dense.weight, dense.bias = nn.Parameter(weight), module.bias
        native.set_submodule(name, dense)
    torch.testing.assert_close(found_logits, logits(native), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [{"kind": "spqr", "bits": 3}, SYMMETRIC], ids=lambda method: str(method["kind"]))
def test_dense_is_a_plain_checkpoint(mini_model: Path, texts: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    path = export(mini_model, texts, method, "dense", tmp_path / "out")
    model = open_float32(path)
    check_same(model, tmp_path / "out", rounding=torch.float16)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (path / "config.json").read_bytes() == (mini_model / "config.json").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(path).dtype == torch.float16
    assert len(AutoTokenizer.from_pretrained(path)) == len(AutoTokenizer.from_pretrained(mini_model))
    assert "bfloat16" in (path / "README.md").read_text()


@pytest.mark.parametrize("method", [SYMMETRIC, WITH_ZEROS, BY_ROW, STATIC_GROUPS], ids=str)
def test_pack_quantized_loads_without_further_arguments(
    opt_mini: Path, texts: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    path = export(opt_mini, texts, method, "pack_quantized", tmp_path / "out")
    check_same(open_float32(path), tmp_path / "out", rounding=torch.float16)


@overriding
def test_pack_quantized_that_stays_packed_is_exactly_what_was_calibrated(
    mini_model: Path, texts: Path, tmp_path: Path
) -> None:
    path = export(mini_model, texts, SYMMETRIC, "pack_quantized", tmp_path / "out")
    check_same(open_float32(path, quantization_config=STAYS_PACKED), tmp_path / "out")


@overriding
def test_zeros_that_stay_packed_do_not_load(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    """Why config.json says `dequantize`; when this fails, compressed-tensors or transformers has learnt it."""
    path = export(opt_mini, texts, WITH_ZEROS, "pack_quantized", tmp_path / "out")
    with pytest.raises(RuntimeError, match="mismatch"):
        open_float32(path, quantization_config=STAYS_PACKED)


@pytest.mark.parametrize("method", [SYMMETRIC, WITH_ZEROS, ACTIVATION_ORDER], ids=str)
def test_gptq_holds_the_calibrated_weights(opt_mini: Path, texts: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    path = export(opt_mini, texts, method, "gptq", tmp_path / "out")
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    native = load(tmp_path / "out")
    for name in ("model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.3.fc2"):
        linear = native.get_submodule(name)
        assert isinstance(linear, PackedLinear)
        stored = load_file(path / index[f"{name}.qweight"])
        parts = {part: stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        assert torch.equal(read_weight(parts, config), linear.compressed().dequantize())
        assert linear.bias is not None and torch.equal(stored[f"{name}.bias"].float(), linear.bias)
        assert f"{name}.weight" not in index


def test_exports_are_files_of_the_artifact_and_the_same_for_any_fleet(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    found = []
    for devices in (1, 3):
        out = tmp_path / str(devices)
        targets = ["dense", "pack_quantized", "gptq"]
        report = run(make_spec(opt_mini, texts, SYMMETRIC, exports=targets, devices=devices, **UNEVALUATED), out)
        assert "exporting" in report.phases
        manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
        exported = {file.name: file.sha256 for file in manifest.files if file.name.startswith("exports/")}
        on_disk = [path for path in (out / "exports").rglob("*") if path.is_file()]
        assert exported == {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in on_disk
        }
        found.append(exported)
    assert found[0] == found[1]
    assert {name.split("/")[1] for name in found[0]} == {"dense", "pack_quantized", "gptq"}


def test_experts_go_out_under_the_names_of_the_checkpoint(texts: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    build("mixtral", vocab_size=256).half().save_pretrained(model)
    write_byte_tokenizer(model)
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 5, "sequence_length": 32}
    method = {"kind": "rtn", "bits": 4, "symmetric": True}
    targets = ["dense", "pack_quantized"]
    run(make_spec(model, texts, method, exports=targets, calibration=calibration, **UNEVALUATED), out)
    index = json.loads((out / "exports" / "dense" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == load_file(model / "model.safetensors").keys()
    dense, packed = (open_float32(out / "exports" / target).half().state_dict() for target in targets)
    assert all(torch.equal(tensor, packed[name]) for name, tensor in dense.items())


def test_the_index_accounts_for_every_tensor(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    path = export(opt_mini, texts, {"kind": "septq", "bits": 3}, "dense", tmp_path / "out")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    original = load_file(opt_mini / "model.safetensors")
    stored = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in stored.items() for name in tensors}
    assert index["weight_map"].keys() == original.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in original.values())
    assert sorted(stored) == [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]


def test_a_model_that_a_target_cannot_hold_is_refused_before_the_first_block(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidJob, match=r"pack_quantized cannot hold .*groups of 96 do not divide its 256 columns"):
        export(opt_mini, texts, SYMMETRIC | {"group_size": 96}, "pack_quantized", tmp_path / "out")
    assert not (tmp_path / "out" / "blocks").exists()
