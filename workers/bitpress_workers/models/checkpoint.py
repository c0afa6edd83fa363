"""A checkpoint: safetensors read tensor by tensor, a config that was checked, a tokenizer.

Nothing is unpickled and no code of the checkpoint runs: config.json is checked before transformers
sees it, since its keys have named code to run before (CVE-2026-4372).
"""

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from bitpress.errors import CheckpointError, UnsupportedModel
from bitpress_workers.models.family import family_of, is_decoder
from bitpress_workers.models.headers import TensorInfo, read_header
from bitpress_workers.models.sketch import sketch
from bitpress_workers.models.sources import COMPANIONS, BucketSource, HubSource, LocalSource, Source, read_whole

__all__ = ["INDEX", "Checkpoint", "TensorInfo"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# What a hub knows a state of a repository by; branches and tags move.
COMMIT = re.compile("[0-9a-f]{40}")

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

# One connection to an object store does not use the line; pieces must not cost memory to speak of.
READERS = 4
PIECE_BYTES = 16 * 2**20

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


class Checkpoint:
    """A checkpoint's transformers `config` and `tensors`, what the headers say of them.

    uri, revision: open it again, on another host as well. path: a local directory with its config and tokenizer.
    """

    def __init__(self, source: Source, config: PreTrainedConfig, tensors: Mapping[str, TensorInfo]) -> None:
        self._source, self.config, self.tensors = source, config, tensors
        self.uri, self.revision, self.path = source.uri, source.revision, source.companions
        self._reads: list[int] = []  # bytes of each, by whichever thread

    @classmethod
    def open(cls, uri: str, revision: str | None = None) -> Self:
        """Open a directory, `s3://bucket/prefix`, or else a model of the hub, whose files are downloaded.

        revision: the commit of a model of the hub, which needs one. Raises CheckpointError when there is no such
        model, a file is missing or invalid, or the weights are pickled; UnsupportedModel when its family is not known.
        """
        source = _source(uri, revision)
        return cls(source, _read_config(source), _read_headers(source))

    def read(self, names: Iterable[str], pinned: bool = False) -> dict[str, Tensor]:
        """Read tensors as they are stored, each into memory of its own; pinned: memory that a GPU copies from.

        Raises CheckpointError when a file cannot be read or is not the one that was opened, StoreError when a
        store does not answer.
        """
        tensors: dict[str, Tensor] = {}
        pieces = []
        for name in names:
            info = self.tensors[name]
            raw = torch.empty(info.bytes, dtype=torch.uint8, pin_memory=pinned)
            tensors[name] = raw.view(info.dtype).view(info.shape)
            pieces += [(info, at, part) for at, part in enumerate(raw.split(PIECE_BYTES))]
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(_read_piece, pieces))
        self._reads.append(sum(tensor.nbytes for tensor in tensors.values()))
        return tensors

    @property
    def bytes_read(self) -> int:
        """Of tensors, so far."""
        return sum(self._reads)

    def companion_files(self) -> list[Path]:
        """The files an artifact carries over: config, tokenizer, licence; never weights or code."""
        return sorted(file for file in self.path.iterdir() if file.is_file() and COMPANIONS.fullmatch(file.name))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises CheckpointError."""
        try:
            return AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever the files of a stranger make the library raise
            raise CheckpointError(f"{self.uri}: its tokenizer cannot be loaded: {error}") from error


def _read_piece(piece: tuple[TensorInfo, int, Tensor]) -> None:
    info, number, target = piece
    info.file.read_into(info.start + number * PIECE_BYTES, target.numpy().data)


def _source(uri: str, revision: str | None) -> Source:
    try:
        stored = uri.startswith("s3://") or Path(uri).is_dir()
        if stored and revision is not None:
            raise CheckpointError(f"{uri}: a revision is of a model of the hub; a directory and a bucket have none")
        if stored:
            return BucketSource(uri) if uri.startswith("s3://") else LocalSource(Path(uri))
        return HubSource(uri, _download(uri, revision))
    except OSError as error:
        raise CheckpointError(f"{uri}: cannot be opened: {error}") from error


def _download(uri: str, revision: str | None) -> Path:
    """Fetch one commit of a model of the hub into the hub's cache, or find it there."""
    try:
        if revision is None or not COMMIT.fullmatch(revision):
            commit = huggingface_hub.HfApi().model_info(uri, revision=revision).sha
            raise CheckpointError(
                f"{uri}: a model of the hub is read at a commit, so that a job that is run again reads the same; "
                f"expected 40 hexadecimal digits as revision, found {revision or 'none'}, which is now {commit}"
            )
        return Path(huggingface_hub.snapshot_download(uri, revision=revision, allow_patterns=DOWNLOADS))
    except HFValidationError:
        raise CheckpointError(f"{uri}: no such directory, and not a hub id such as org/model") from None
    except (OSError, ValueError) as error:  # the hub's HTTP and cache errors derive from these
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(f"{uri}: no such directory, and no such model on the hub{at}: {error}") from error


def _read_config(source: Source) -> PreTrainedConfig:
    where = f"{source.uri}/config.json"
    raw = _read_json(source, "config.json")
    _check_keys(raw, where)
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(model_type, str) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{where}: expected a string model_type, found {model_type!r}")
    try:
        family_of(model_type, architectures)
    except UnsupportedModel as error:
        seen = sketch(source.companions) if is_decoder(architectures) else ""
        raise UnsupportedModel(f"{error.message}; {seen}" if seen else error.message) from None
    try:
        return AutoConfig.from_pretrained(source.companions, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the values of a stranger make the library raise
        raise CheckpointError(f"{where}: {error}") from error


def _read_json(source: Source, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(read_whole(source.file(name)))
    except FileNotFoundError:
        raise CheckpointError(f"{source.uri}: expected a file {name}, found none") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source.uri}/{name}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{source.uri}/{name}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _check_keys(value: object, file: str) -> None:
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


def _read_headers(source: Source) -> dict[str, TensorInfo]:
    """Read the headers of all shards; no tensor is read."""
    tensors: dict[str, TensorInfo] = {}
    for name in _weight_files(source):
        try:
            tensors |= read_header(source.file(name))
        except FileNotFoundError:
            raise CheckpointError(f"{source.uri}: {INDEX} names the shard {name}, which is missing") from None
    return tensors


def _weight_files(source: Source) -> list[str]:
    names = source.names()
    if INDEX in names:
        weight_map = _read_json(source, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_plain_name(name) for name in weight_map.values()):
            raise CheckpointError(
                f"{source.uri}/{INDEX}: expected a weight_map from tensor names to files in this directory"
            )
        return sorted(set(weight_map.values()))
    if SINGLE in names:
        return [SINGLE]
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    reason = f"; pickle is not read ({', '.join(pickles)})" if pickles else ""
    raise CheckpointError(f"{source.uri}: expected {SINGLE} or {INDEX}, found neither{reason}")


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name
