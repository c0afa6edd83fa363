"""A checkpoint on disk: safetensors read tensor by tensor, a config that was checked, a tokenizer.

Nothing is unpickled and no code of the checkpoint runs: config.json is checked before transformers
sees it, since its keys have named code to run before (CVE-2026-4372).
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from bitpress.errors import CheckpointError, UnsupportedModel
from bitpress_workers.models.family import family_of, is_decoder
from bitpress_workers.models.sketch import sketch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

COMPANIONS = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|tokenizer\.model|spiece\.model|chat_template\.\w+"
    r"|(LICENSE|NOTICE|USE_POLICY)(\.\w+)?",
    re.IGNORECASE,
)
DOWNLOADS = [
    "model*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "chat_template.*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]

# Private keys that transformers itself has written into config.json; any other may steer which code runs.
PRIVATE_KEYS = {
    "_name_or_path", "_model_name_or_path", "_commit_hash", "_num_labels", "_attn_implementation_autoset",
    "_remove_final_layer_norm", "_sliding_window_pattern",
}  # fmt: skip
REFUSED_KEYS = {
    "auto_map": "names code to run; remote code is never run",
    "attn_implementation": "may name code to fetch",
    "experts_implementation": "may name code to fetch",
    "quantization_config": "says that the weights are compressed already; the original checkpoint is needed",
}

# Names in safetensors headers (https://github.com/huggingface/safetensors, "Format").
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int


class Checkpoint:
    """A checkpoint's files: `path`, its transformers `config`, and `tensors`, what the headers say."""

    def __init__(self, path: Path, config: PreTrainedConfig, tensors: Mapping[str, TensorInfo]) -> None:
        self.path, self.config, self.tensors = path, config, tensors

    @classmethod
    def open(cls, uri: str, revision: str | None = None) -> Self:
        """Open a directory, else a model of the hub, whose safetensors, JSON and tokenizer files are downloaded.

        Raises CheckpointError when there is no such model, a file is missing or invalid, or the weights
        are pickled; UnsupportedModel when its family is not known.
        """
        try:
            path = Path(uri) if Path(uri).is_dir() else _download(uri, revision)
        except OSError as error:
            raise CheckpointError(f"{uri}: cannot be opened: {error}") from error
        config = _read_config(path)
        return cls(path, config, _read_headers(path))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors as they are stored.

        Returns copies: the files are not mapped any more afterwards, so dropping the tensors frees the memory.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        tensors: dict[str, Tensor] = {}
        for file, inside in by_file.items():
            with safe_open(file, framework="pt") as stored:
                tensors |= {name: stored.get_tensor(name).clone() for name in inside}
        return tensors

    def companion_files(self) -> list[Path]:
        """The files an artifact carries over: config, tokenizer, licence; never weights or code."""
        return sorted(file for file in self.path.iterdir() if file.is_file() and COMPANIONS.fullmatch(file.name))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises CheckpointError."""
        try:
            return AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever the files of a stranger make the library raise
            raise CheckpointError(f"{self.path}: its tokenizer cannot be loaded: {error}") from error


def _download(uri: str, revision: str | None) -> Path:
    """Fetch a model of the hub into the hub's cache, or find it there."""
    try:
        return Path(huggingface_hub.snapshot_download(uri, revision=revision, allow_patterns=DOWNLOADS))
    except HFValidationError:
        raise CheckpointError(f"{uri}: no such directory, and not a hub id such as org/model") from None
    except (OSError, ValueError) as error:  # the hub's HTTP and cache errors derive from these
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(f"{uri}: no such directory, and no such model on the hub{at}: {error}") from error


def _read_config(path: Path) -> PreTrainedConfig:
    raw = _read_json(path / "config.json")
    _check_keys(raw, path / "config.json")
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(model_type, str) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path / 'config.json'}: expected a string model_type, found {model_type!r}")
    try:
        family_of(model_type, architectures)
    except UnsupportedModel as error:
        seen = sketch(path) if is_decoder(architectures) else ""
        raise UnsupportedModel(f"{error.message}; {seen}" if seen else error.message) from None
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the values of a stranger make the library raise
        raise CheckpointError(f"{path / 'config.json'}: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: expected a file {file.name}, found none") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _check_keys(value: object, file: Path) -> None:
    """Refuse keys, at any depth, that make transformers run or fetch code, or that say the weights are compressed."""
    if isinstance(value, list):
        for item in value:
            _check_keys(item, file)
    if isinstance(value, dict):
        for key, item in value.items():
            if item is not None and key in REFUSED_KEYS:
                raise CheckpointError(f"{file}: the key {key!r} is refused: it {REFUSED_KEYS[key]}")
            if key.startswith("_") and key not in PRIVATE_KEYS:
                raise CheckpointError(f"{file}: the private key {key!r} is refused")
            _check_keys(item, file)


def _read_headers(path: Path) -> dict[str, TensorInfo]:
    """Read the headers of all shards; no tensor is read."""
    files = _weight_files(path)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                tensors |= {name: _tensor_info(file, name, stored.get_slice(name)) for name in stored.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise CheckpointError(f"{path}: {INDEX} names the shard {file.name}, which is missing") from None
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: not a complete safetensors file: {error}") from error
    return tensors


def _weight_files(path: Path) -> list[Path]:
    if (path / INDEX).exists():
        weight_map = _read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_plain_name(name) for name in weight_map.values()):
            raise CheckpointError(f"{path / INDEX}: expected a weight_map from tensor names to files in this directory")
        return [path / name for name in sorted(set(weight_map.values()))]
    if (path / SINGLE).exists():
        return [path / SINGLE]
    pickles = sorted(file.name for suffix in ("bin", "pt", "pth") for file in path.glob(f"*.{suffix}"))
    reason = f"; pickle is not read ({', '.join(pickles)})" if pickles else ""
    raise CheckpointError(f"{path}: expected {SINGLE} or {INDEX}, found neither{reason}")


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _tensor_info(file: Path, name: str, stored: Any) -> TensorInfo:
    dtype, shape = DTYPES.get(stored.get_dtype()), tuple(stored.get_shape())
    if dtype is None:
        raise CheckpointError(f"{file}: {name} has the dtype {stored.get_dtype()}, which is not read")
    return TensorInfo(file, dtype, shape, prod(shape) * dtype.itemsize)
