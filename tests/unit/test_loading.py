"""Artifacts open as transformers models whose weights are exactly what was stored, or not at all."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import CONFIGS, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitpress.errors import ArtifactError
from bitpress.loading import PackedLinear, load
from bitpress.methods import MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline

METHODS: dict[str, MethodConfig] = {
    "rtn": RTNConfig(bits=4, group_size=16),
    "spqr": SpQRConfig(bits=3, outlier_threshold=0.05),
    "septq": SEPTQConfig(bits=3),
}
ONE_OF_EACH_FAMILY = {config.model_type: name for name, config in CONFIGS.items()}.values()
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def write_artifact(name: str, method: MethodConfig, path: Path, left_dense: str = "") -> PreTrainedModel:
    """Compress the linears of a small model, but for the one named, and leave the result in `path`.

    Returns transformers' own model of a checkpoint with the values that are stored.
    """
    dense = path.with_name("dense")
    build(name).save_pretrained(dense)
    checkpoint = Checkpoint.open(str(dense))
    outline, values = Outline(checkpoint), checkpoint.read(checkpoint.tensors)
    files = {"skeleton.safetensors": {ours: values[theirs] for ours, theirs in outline.outer_tensor_names().items()}}
    headers: dict[str, Any] = {}
    for index in range(outline.num_blocks):
        tensors = files.setdefault(f"blocks/{index:05d}.safetensors", {})
        linears = {f"{outline.block_name(index)}.{name}" for tap in outline.taps(index) for name in tap.linears}
        for ours, theirs in outline.block_tensor_names(index).items():
            module, _, kind = ours.rpartition(".")
            if module not in linears or module == left_dense or kind != "weight":
                tensors[ours] = values[theirs]
                continue
            linear = compress(values[theirs], torch.eye(values[theirs].shape[1]), method)
            headers[module] = linear.header()
            tensors |= {f"{module}.{suffix}": stored for suffix, stored in linear.tensors().items()}
            values[theirs] = linear.dequantize()
    save_file(values, dense / "model.safetensors", metadata={"format": "pt"})
    write_files(path, files, dense / "config.json", headers)
    return AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)


def write_files(path: Path, files: dict[str, dict[str, Tensor]], config: Path, headers: dict[str, Any]) -> None:
    (path / "blocks").mkdir(parents=True)
    for file, tensors in files.items():
        save_file(tensors, path / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    write_json(path / "model.safetensors.index.bitpress.json", {"metadata": {}, "weight_map": weight_map})
    quantization = {"quant_method": "bitpress", "version": 1, "modules": headers}
    changes = {"dtype": "float16", "quantization_config": quantization}
    write_json(path / "config.json", json.loads(config.read_text()) | changes)
    write_manifest(path)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def write_manifest(path: Path) -> None:
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    spec = {
        "model": {"uri": "m"},
        "method": {"kind": "rtn", "bits": 4},
        "calibration": {"dataset": "c4", "num_sequences": 1, "sequence_length": 8},
    }
    entries = [
        {
            "name": str(file.relative_to(path)),
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in files
    ]
    write_json(path / "manifest.json", {"version": 1, "spec": spec, "fingerprint": "0" * 64, "files": entries})


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_artifact("llama-tied", METHODS["spqr"], tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "rtn") for name in ONE_OF_EACH_FAMILY), ("llama", "spqr"), ("opt", "septq"), ("mixtral", "spqr")],
)
def test_a_loaded_model_computes_with_the_stored_weights(name: str, method: str, tmp_path: Path) -> None:
    dense = write_artifact(name, METHODS[method], tmp_path / "artifact")
    loaded = load(tmp_path / "artifact")
    headers = json.loads((tmp_path / "artifact/config.json").read_text())["quantization_config"]["modules"]
    packed = {name for name, module in loaded.named_modules() if isinstance(module, PackedLinear)}
    assert packed == set(headers)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, dense(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_an_expert_that_was_left_dense_loads(tmp_path: Path) -> None:
    expert = "model.layers.1.mlp.experts.2.up_proj"
    dense = write_artifact("qwen3_moe", METHODS["rtn"], tmp_path / "artifact", left_dense=expert)
    loaded = load(tmp_path / "artifact")
    assert isinstance(loaded.get_submodule(expert), nn.Linear)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, dense(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_a_loaded_model_generates(artifact: Path) -> None:
    model = load(artifact)
    tokens = model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 12)


def test_linears_stay_packed_in_memory(artifact: Path) -> None:
    model = load(artifact)
    linear = model.get_submodule("model.layers.0.mlp.gate_proj")
    assert isinstance(linear, PackedLinear)
    stored = load_file(artifact / "blocks/00000.safetensors")
    for name, buffer in linear.named_buffers():
        expected = stored[f"model.layers.0.mlp.gate_proj.{name}"]
        assert buffer.dtype == expected.dtype
        assert torch.equal(buffer, expected)


def test_a_cast_leaves_what_is_packed_alone(artifact: Path) -> None:
    linear = load(artifact).get_submodule("model.layers.0.mlp.gate_proj")
    assert isinstance(linear, PackedLinear)
    before = linear.compressed().dequantize()
    assert torch.equal(linear.to(torch.float64).compressed().dequantize(), before)


def test_other_types_are_possible(artifact: Path) -> None:
    model = load(artifact, dtype=torch.bfloat16)
    assert model(TOKENS).logits.dtype == torch.bfloat16


def test_a_packed_model_is_not_saved_anew(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not serializable"):
        load(artifact).save_pretrained(tmp_path / "copy")


def test_without_the_plugin_loading_raises(artifact: Path) -> None:
    script = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(artifact)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "no file named model.safetensors" in done.stderr


def drop_tensor(path: Path, name: str) -> None:
    file = path / "blocks/00001.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file)


def test_a_missing_tensor_is_an_error(artifact: Path) -> None:
    drop_tensor(artifact, "model.layers.1.mlp.up_proj.codes")
    with pytest.raises(ArtifactError, match=r"missing keys: model.layers.1.mlp.up_proj.codes"):
        load(artifact, verify=False)


def test_a_missing_norm_is_an_error(artifact: Path) -> None:
    drop_tensor(artifact, "model.layers.1.input_layernorm.weight")
    with pytest.raises(ArtifactError, match=r"missing keys: model.layers.1.input_layernorm.weight"):
        load(artifact, verify=False)


def test_a_left_over_tensor_is_an_error(artifact: Path) -> None:
    file = artifact / "blocks/00001.safetensors"
    save_file(load_file(file) | {"model.layers.1.mlp.up_proj.weight": torch.zeros(44, 32)}, file)
    with pytest.raises(ArtifactError, match=r"unexpected keys: model.layers.1.mlp.up_proj.weight"):
        load(artifact, verify=False)


def test_a_tensor_of_another_shape_is_an_error(artifact: Path) -> None:
    file = artifact / "blocks/00001.safetensors"
    name = "model.layers.1.mlp.up_proj.codes"
    save_file(load_file(file) | {name: torch.zeros(44, 3, dtype=torch.uint8)}, file)
    with pytest.raises(ArtifactError, match="mismatch"):
        load(artifact, verify=False)


def test_a_missing_file_is_an_error(artifact: Path) -> None:
    (artifact / "blocks/00001.safetensors").unlink()
    with pytest.raises(ArtifactError, match="00001"):
        load(artifact)


def test_no_artifact_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config.json is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"modules": {"model.layers.9.mlp.up_proj": {}}}, "no such module"),
        ({"modules": {"model.layers.0.mlp": {"shape": [1, 1]}}}, "expected a linear"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(artifact: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((artifact / "config.json").read_text())
    config["quantization_config"] |= change
    write_json(artifact / "config.json", config)
    with pytest.raises(ArtifactError, match=message):
        load(artifact, verify=False)


def test_an_unknown_format_is_an_error(artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())
    config["quantization_config"]["modules"]["model.layers.0.mlp.up_proj"]["format"] = "folded"
    write_json(artifact / "config.json", config)
    with pytest.raises(ArtifactError, match="'folded'"):
        load(artifact, verify=False)


def test_without_a_manifest_there_is_no_artifact(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"no manifest.json"):
        load(artifact)


def test_a_changed_byte_is_an_error(artifact: Path) -> None:
    load(artifact)
    file = artifact / "blocks/00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"00000.safetensors: its content has changed"):
        load(artifact)


def test_a_file_that_the_manifest_names_must_be_there(artifact: Path) -> None:
    (artifact / "report.json").write_text("{}")
    write_manifest(artifact)
    (artifact / "report.json").write_text("{ }")
    with pytest.raises(ArtifactError, match=r"report.json: expected 2 bytes, found 3"):
        load(artifact)
    (artifact / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"report.json: missing"):
        load(artifact)


def test_a_manifest_that_is_none_is_an_error(artifact: Path) -> None:
    (artifact / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a manifest"):
        load(artifact)
