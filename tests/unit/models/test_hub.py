"""Models of the hub: one commit, safetensors alone, a token from a file; over HTTP, as huggingface_hub asks."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from bitpress.errors import CheckpointError
from bitpress_workers.models.checkpoint import Checkpoint

MODEL = "someone/small"
WITH_SECRETS = Path(__file__).parents[3] / "deploy" / "containers" / "with-secrets"


@pytest.fixture
def repository(llama: Path, tmp_path: Path) -> Path:
    """A model's files with what repositories of the hub have beside them."""
    directory = Path(shutil.copytree(llama, tmp_path / "repository"))
    for name in ("pytorch_model.bin", "modeling_llama.py", "training_args.pt", "onnx_model.onnx"):
        (directory / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return directory


@pytest.fixture
def reached(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """A hub that this process asks, with an empty cache."""
    with hub.serving(MODEL, repository) as found:
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield found


def test_a_commit_is_read_and_nothing_but_safetensors_and_text(reached: hub.Hub, llama: Path) -> None:
    checkpoint = Checkpoint.open(MODEL, hub.COMMIT)

    read, stored = checkpoint.read(checkpoint.tensors), load_file(llama / "model.safetensors")
    assert read.keys() == stored.keys() and all(torch.equal(read[name], stored[name]) for name in stored)
    assert (checkpoint.uri, checkpoint.revision) == (MODEL, hub.COMMIT)
    assert reached.files_read() == {path.name for path in llama.iterdir()}


@pytest.mark.parametrize("revision", [None, "main", "v9", hub.COMMIT[:12]])
def test_a_name_that_may_move_is_refused(reached: hub.Hub, revision: str | None) -> None:
    known = revision in (None, "main")
    message = (
        f"expected 40 hexadecimal digits .*, which is now {hub.COMMIT}" if known else "no such model on the hub at"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(MODEL, revision)
    assert reached.files_read() == set()


def test_what_is_in_the_cache_needs_no_hub(reached: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint.open(MODEL, hub.COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    Checkpoint.open(MODEL, hub.COMMIT)
    with pytest.raises(CheckpointError, match="no such model on the hub at"):
        Checkpoint.open(MODEL, "f" * 40)


def test_weights_that_are_pickled_are_not_even_fetched(reached: hub.Hub, repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        Checkpoint.open(MODEL, hub.COMMIT)
    assert "pytorch_model.bin" not in reached.files_read()


def test_a_gated_model_is_refused_without_its_token(reached: hub.Hub) -> None:
    reached.token = "hf_secret"
    with pytest.raises(CheckpointError, match="no such model on the hub at"):
        Checkpoint.open(MODEL, hub.COMMIT)


def test_the_token_of_a_gated_model_comes_from_a_file(repository: Path, tmp_path: Path) -> None:
    """As in a container: the start script reads the secret, HF_ENDPOINT names the hub."""
    secret = tmp_path / "hf_token"
    secret.write_text("hf_secret\n")
    program = (
        "import sys; from bitpress_workers.models.checkpoint import Checkpoint\n"
        "print(len(Checkpoint.open(*sys.argv[1:]).tensors))"
    )
    with hub.serving(MODEL, repository, token="hf_secret") as gated:
        environment = {
            "HF_ENDPOINT": gated.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN_FILE": str(secret),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            ["sh", str(WITH_SECRETS), sys.executable, "-c", program, MODEL, hub.COMMIT],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(load_file(repository / "model.safetensors"))
