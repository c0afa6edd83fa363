"""Opens a finished artifact as its users will, in a process of its own, and runs it over a prompt.

What it is made of comes from the object store and is checked against its sha256. A model that does not fit into
memory whole is opened by block: the same packed linears in transformers' own model, whose blocks are read when
its forward calls them, and forgotten behind it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bitpress.errors import ArtifactError, StoreError
from bitpress.loading import BitpressConfig, BitpressQuantizer, PackedLinear, load
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.models.family import family_of
from bitpress_workers.pipeline.publish import OUTER, block_name

PROMPT = (
    "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest structure in "
    "Paris. Its base is square, measuring 125 metres on each side. It was the first structure in the world to pass "
    "200 and 300 metres in height."
)
PROMPT_TOKENS = 32


def prompt_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's first tokens."""
    found: list[int] = tokenizer(PROMPT).input_ids[:PROMPT_TOKENS]
    return found


@dataclass(frozen=True)
class StoredFile:
    """A file of an artifact: its object's key, and what it must hold."""

    key: str
    sha256: str


@dataclass(frozen=True)
class Opening:
    """What is to be opened. files: by name. directory: an empty one. threads: of the forward; 0: torch's default."""

    store_url: str
    files: Mapping[str, StoredFile]
    directory: Path
    by_block: bool
    threads: int


@dataclass(frozen=True)
class Opened:
    """What the artifact's own tokenizer makes of the prompt, and the logits [1, V] it ends with, float32."""

    tokens: list[int]
    logits: Tensor


@torch.no_grad()
def run_artifact(opening: Opening) -> Opened:
    """Open an artifact and run it over the prompt. Raises ArtifactError, StoreError."""
    if opening.threads:
        torch.set_num_threads(opening.threads)
    files = _Files(ArtifactStore.from_url(opening.store_url), opening.files)
    for name in opening.files:
        if not (opening.by_block and name.endswith(".safetensors")):
            files.place(name, opening.directory)
    tokens = prompt_tokens(AutoTokenizer.from_pretrained(opening.directory, local_files_only=True))
    model = _open_by_block(opening.directory, files) if opening.by_block else load(opening.directory, verify=False)
    return Opened(tokens, model(torch.tensor([tokens]), use_cache=False).logits[0, -1:])


@dataclass(frozen=True)
class _Files:
    store: ArtifactStore
    files: Mapping[str, StoredFile]

    def place(self, name: str, directory: Path) -> None:
        """Put a file into a directory: a link, where the store is a directory itself."""
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if found := self.store.path(self.files[name].key):
            try:
                with found.open("rb") as stream:
                    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise StoreError(f"cannot read {self.files[name].key}: {error}") from error
            self._check(name, sha256)
            target.symlink_to(found)
        else:
            target.write_bytes(self.read(name))

    def read(self, name: str) -> bytes:
        data = self.store.get_bytes(self.files[name].key)
        self._check(name, hashlib.sha256(data).hexdigest())
        return data

    def tensors(self, name: str) -> dict[str, Tensor]:
        return safetensors.torch.load(self.read(name))

    def _check(self, name: str, sha256: str) -> None:
        if sha256 != self.files[name].sha256:
            raise ArtifactError(f"{name}: its content has changed since it was published")


def _open_by_block(directory: Path, files: _Files) -> PreTrainedModel:
    """The model in float32, without its blocks' weights; its forward reads each block from the store."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    packing = BitpressConfig(**config.quantization_config)
    del config.quantization_config
    # Weights are put on the meta device, buffers are computed: rotary frequencies are in no artifact.
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        BitpressQuantizer(packing)._process_model_before_weight_loading(model)
    model.requires_grad_(False)
    outer = {name: tensor.float() for name, tensor in files.tensors(OUTER).items()}
    left = model.load_state_dict(outer, strict=False, assign=True)
    blocks = family_of(config.model_type, config.architectures or ()).blocks
    missing = {name for name in left.missing_keys if not name.startswith(f"{blocks}.")}
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if left.unexpected_keys or any(tensor.is_meta for name, tensor in model.state_dict().items() if name in missing):
        raise ArtifactError(f"{OUTER}: missing {sorted(missing)}, unexpected {left.unexpected_keys}")
    for index, block in enumerate(model.get_submodule(blocks).children()):
        _read_when_called(block, f"{blocks}.{index}.", partial(files.tensors, block_name(index)))
    return model


def _read_when_called(block: nn.Module, prefix: str, read: Callable[[], Mapping[str, Tensor]]) -> None:
    """Let a block have its tensors only while it is called. prefix: of its tensors' names."""
    packed = {
        f"{place}.{name}"
        for place, module in block.named_modules()
        if isinstance(module, PackedLinear)
        for name, _ in module.named_buffers(recurse=False)
    }

    def fill(*_: Any) -> None:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in read().items()}
        ready = {name: tensor if name in packed else tensor.float() for name, tensor in tensors.items()}
        try:
            block.load_state_dict(ready, assign=True)
        except RuntimeError as error:
            raise ArtifactError(f"{prefix.removesuffix('.')}: {error}") from error

    def drop(*_: Any) -> None:
        empty = {name: tensor.to("meta") for name, tensor in block.state_dict().items()}
        block.load_state_dict(empty, assign=True)

    block.register_forward_pre_hook(fill)
    block.register_forward_hook(drop)
