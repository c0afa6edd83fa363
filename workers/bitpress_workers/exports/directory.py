"""The directory of an export: a Hugging Face checkpoint, written piece by piece."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import safetensors.torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from bitpress.formats import CompressedLinear
from bitpress_workers.exports.base import Target
from bitpress_workers.models.checkpoint import INDEX, Checkpoint

Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Piece:
    """A part of a compressed model: what is outside the blocks, or one block.

    tensors: what was not compressed, by the checkpoint's names. linears: compressed linears, by the
    checkpoint's names of their weights. modules: the linears' names inside the model.
    """

    tensors: Mapping[str, Tensor]
    linears: Mapping[str, CompressedLinear]
    modules: Sequence[str]


@dataclass
class _Written:
    """What one target's index has to say so far."""

    weight_map: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


def export_files(targets: Sequence[Target], checkpoint: Checkpoint, pieces: Iterable[Piece], num_pieces: int) -> Files:
    """Yield all files of all targets as (name, content); only one piece is held at a time.

    Names begin with `exports/<target>/`. Equal pieces give equal bytes.
    """
    written = {target.name: _Written() for target in targets}
    compressed: set[str] = set()
    for number, piece in enumerate(pieces, start=1):
        compressed.update(piece.modules)
        file = f"model-{number:05d}-of-{num_pieces:05d}.safetensors"
        for target in targets:
            tensors = _piece_tensors(target, checkpoint, piece)
            written[target.name].weight_map |= dict.fromkeys(tensors, file)
            written[target.name].num_bytes += sum(tensor.nbytes for tensor in tensors.values())
            yield f"exports/{target.name}/{file}", safetensors.torch.save(tensors, metadata={"format": "pt"})
    others = sorted(_linears(checkpoint.config) - compressed)
    for target in targets:
        small = _small_files(target, checkpoint, written[target.name], others)
        yield from ((f"exports/{target.name}/{name}", data) for name, data in small.items())


def _piece_tensors(target: Target, checkpoint: Checkpoint, piece: Piece) -> dict[str, Tensor]:
    tensors = dict(piece.tensors)
    for weight, linear in piece.linears.items():
        parts = target.tensors(linear, checkpoint.tensors[weight].dtype)
        tensors |= {weight.removesuffix("weight") + suffix: tensor for suffix, tensor in parts.items()}
    return tensors


def _small_files(target: Target, checkpoint: Checkpoint, written: _Written, others: list[str]) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in checkpoint.companion_files()}
    files[INDEX] = _json({"metadata": {"total_size": written.num_bytes}, "weight_map": written.weight_map})
    files["README.md"] = f"# Export `{target.name}` of a Bitpress artifact\n\n{target.note}\n".encode()
    quantization = target.quantization_config(others)
    if quantization is not None:
        files["config.json"] = _json(json.loads(files["config.json"]) | {"quantization_config": quantization})
    return files


def _linears(config: PreTrainedConfig) -> set[str]:
    """Names of all linears of the model that a config describes."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(deepcopy(config))
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _json(data: object) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode()
