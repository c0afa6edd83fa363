"""What opens as a checkpoint, and what is refused with which words."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from small_models import build

from bitpress.errors import CheckpointError, UnsupportedModel
from bitpress_workers.models.checkpoint import Checkpoint


def _change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_headers_and_tensors_are_those_of_the_file(llama: Path) -> None:
    checkpoint = Checkpoint.open(str(llama))
    stored = load_file(llama / "model.safetensors")

    assert set(checkpoint.tensors) == set(stored)
    for name, info in checkpoint.tensors.items():
        assert str(info.file) == str(llama / "model.safetensors")
        assert (info.dtype, info.shape, info.bytes) == (
            stored[name].dtype,
            tuple(stored[name].shape),
            stored[name].nbytes,
        )
    read = checkpoint.read(["lm_head.weight", "model.norm.weight"])
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        name: stored[name].tolist() for name in ("lm_head.weight", "model.norm.weight")
    }


def test_tensors_are_copies(llama: Path) -> None:
    checkpoint = Checkpoint.open(str(llama))
    before = checkpoint.read(["model.norm.weight"])["model.norm.weight"]
    checkpoint.read(["model.norm.weight"])["model.norm.weight"].zero_()

    assert torch.equal(checkpoint.read(["model.norm.weight"])["model.norm.weight"], before)


def test_shards(tmp_path: Path) -> None:
    model = build("opt")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    checkpoint = Checkpoint.open(str(tmp_path))

    assert len({info.file for info in checkpoint.tensors.values()}) > 1
    assert all(
        torch.equal(tensor, model.get_parameter(name)) for name, tensor in checkpoint.read(checkpoint.tensors).items()
    )

    shard = Path(str(checkpoint.tensors["model.decoder.layers.2.fc1.weight"].file))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"names the shard {shard.name}, which is missing"):
        Checkpoint.open(str(tmp_path))


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_index_that_leads_elsewhere(llama: Path, index: str) -> None:
    (llama / "model.safetensors.index.json").write_text(index)

    with pytest.raises(CheckpointError, match="expected a weight_map from tensor names to files in this directory"):
        Checkpoint.open(str(llama))


def test_truncated_weights(llama: Path) -> None:
    data = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(data[:-1])

    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file"):
        Checkpoint.open(str(llama))


def test_pickled_weights_are_not_read(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"found neither; pickle is not read \(pytorch_model\.bin\)"):
        Checkpoint.open(str(llama))


@pytest.mark.parametrize("uri", ["/no/such/directory", "./model", "a/b/c"])
def test_path_that_is_not_there(uri: str) -> None:
    with pytest.raises(CheckpointError, match=f"{uri}: no such directory, and not a hub id"):
        Checkpoint.open(uri)


def test_path_that_cannot_be_one() -> None:
    with pytest.raises(CheckpointError, match=r"cannot be opened: .*File name too long"):
        Checkpoint.open("m" * 300 + "/model")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_id_in_the_cache(llama: Path, hub_cache: Path) -> None:
    commit = "0123456789012345678901234567890123456789"
    repository = hub_cache / "models--someone--small"
    shutil.copytree(llama, repository / "snapshots" / commit)

    checkpoint = Checkpoint.open("someone/small", commit)
    assert checkpoint.path == repository / "snapshots" / commit
    assert (checkpoint.uri, checkpoint.revision) == ("someone/small", commit)


def test_hub_id_that_cannot_be_had(hub_cache: Path) -> None:
    for revision in ("v2", 40 * "f"):
        with pytest.raises(CheckpointError, match="small: no such directory, and no such model on the hub at revision"):
            Checkpoint.open("someone/small", revision)


def test_a_directory_has_no_revision(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="a directory and a bucket have none"):
        Checkpoint.open(str(llama), "main")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file config.json, found none"),
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "expected a string model_type, found None"),
        ('{"model_type": "llama", "architectures": [1]}', "expected a string model_type"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_config_that_is_none(llama: Path, content: str | None, message: str) -> None:
    (llama / "config.json").unlink()
    if content is not None:
        (llama / "config.json").write_text(content)

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(llama))

    assert message in caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "'auto_map' is refused: it names code to run"),
        ({"_attn_implementation_internal": "someone/kernel"}, "the private key '_attn_implementation_internal'"),
        ({"attn_implementation": "someone/kernel"}, "'attn_implementation' is refused: it may name code to fetch"),
        ({"text_config": {"sub": [{"auto_map": {}}]}}, "'auto_map' is refused"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the original checkpoint is needed"),
    ],
)
def test_config_that_would_run_code_or_is_compressed(llama: Path, changes: dict[str, Any], message: str) -> None:
    _change_config(llama, **changes)

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(llama))

    assert message in caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is not a decoder language model"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "has no description here"),
        ({"model_type": "no-such", "architectures": ["NoSuchForCausalLM"]}, "has no description here"),
    ],
)
def test_family_that_is_not_known(llama: Path, changes: dict[str, Any], message: str) -> None:
    _change_config(llama, **changes)

    with pytest.raises(UnsupportedModel) as caught:
        Checkpoint.open(str(llama))

    assert f"model_type {changes['model_type']!r}" in caught.value.message
    assert message in caught.value.message
    assert "the families known are llama, mistral, qwen2, qwen3, gemma" in caught.value.message
    assert "models/family.py" in caught.value.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "diffllama", "architectures": ["DiffLlamaForCausalLM"], "num_hidden_layers": 2},
            "its blocks seem to be model.layers, the first of them with the linears self_attn.q_proj, ",
        ),
        (
            {"model_type": "flex_olmo", "architectures": ["FlexOlmoForCausalLM"], "num_hidden_layers": 1},
            "mlp.experts.*.gate_proj, mlp.experts.*.up_proj, mlp.experts.*.down_proj",
        ),
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2},
            "its blocks, transformer.h, hold matrices as [in, out] in Conv1D modules; only nn.Linear is compressed",
        ),
    ],
)
def test_unknown_decoder_is_sketched(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(UnsupportedModel) as caught:
        Checkpoint.open(str(tmp_path))

    assert words in caught.value.message


def test_companion_files_are_neither_weights_nor_code(llama: Path) -> None:
    for name in ("tokenizer.json", "LICENSE", "modeling.py", "pytorch_model.bin", "training_args.json", "README.md"):
        (llama / name).touch()

    names = [file.name for file in Checkpoint.open(str(llama)).companion_files()]

    assert names == ["LICENSE", "config.json", "generation_config.json", "tokenizer.json"]


def test_tokenizer_that_is_missing(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        Checkpoint.open(str(llama)).tokenizer()
