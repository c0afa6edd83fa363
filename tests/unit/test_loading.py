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
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, OPTConfig, PreTrainedModel

from bitpress.errors import ArtifactError
from bitpress.loading import PackedLinear, load
from bitpress.methods import MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(
        hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    ),
    "opt": OPTConfig(
        hidden_size=48, ffn_dim=80, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        max_position_embeddings=64, word_embed_proj_dim=48, tie_word_embeddings=True,
    ),
    "bloom": BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=64, tie_word_embeddings=False),
}  # fmt: skip
BLOCKS = {"llama": "model.layers", "opt": "model.decoder.layers", "bloom": "transformer.h"}
METHODS: dict[str, MethodConfig] = {
    "rtn": RTNConfig(bits=4, group_size=16),
    "spqr": SpQRConfig(bits=3, outlier_threshold=0.05),
    "septq": SEPTQConfig(bits=3),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def random_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def write_artifact(model: PreTrainedModel, family: str, method: MethodConfig, path: Path) -> None:
    """Compress a model's linears, leave the result in `path`, and give the model the values that are stored."""
    (path / "blocks").mkdir(parents=True)
    prefix = BLOCKS[family]
    files: dict[str, dict[str, Tensor]] = {}
    headers: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        module = name.rpartition(".")[0]
        index = name.removeprefix(prefix + ".").partition(".")[0]
        inside = name.startswith(prefix + ".")
        tensors = files.setdefault(f"blocks/{int(index):05d}.safetensors" if inside else "skeleton.safetensors", {})
        if inside and name.endswith(".weight") and isinstance(model.get_submodule(module), nn.Linear):
            linear = compress(tensor, torch.eye(tensor.shape[1]), method)
            headers[module] = linear.header()
            tensors |= {f"{module}.{suffix}": stored for suffix, stored in linear.tensors().items()}
            tensor.copy_(linear.dequantize())
        else:
            tensors[name] = tensor.clone()
    for file, tensors in files.items():
        save_file(tensors, path / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    write_json(path / "model.safetensors.index.bitpress.json", {"metadata": {}, "weight_map": weight_map})
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float16"}
    config["quantization_config"] = {"quant_method": "bitpress", "version": 1, "modules": headers}
    write_json(path / "config.json", config)
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
    write_artifact(random_model("llama"), "llama", METHODS["spqr"], tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_loaded_model_computes_with_the_stored_weights(family: str, method: str, tmp_path: Path) -> None:
    dense = random_model(family)
    write_artifact(dense, family, METHODS[method], tmp_path / "artifact")
    loaded = load(tmp_path / "artifact")
    packed = [module for module in loaded.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 2 * {"llama": 7, "opt": 6, "bloom": 4}[family]
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, dense(TOKENS).logits)


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
    save_file(load_file(file) | {"model.layers.1.mlp.up_proj.weight": torch.zeros(100, 48)}, file)
    with pytest.raises(ArtifactError, match=r"unexpected keys: model.layers.1.mlp.up_proj.weight"):
        load(artifact, verify=False)


def test_a_tensor_of_another_shape_is_an_error(artifact: Path) -> None:
    file = artifact / "blocks/00001.safetensors"
    name = "model.layers.1.mlp.up_proj.codes"
    save_file(load_file(file) | {name: torch.zeros(100, 3, dtype=torch.uint8)}, file)
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
