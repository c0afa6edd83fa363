"""The shapes of a model's parts, from the config and the tensors' headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from bitpress.errors import UnsupportedModel
from bitpress.formats.base import MAX_COLUMNS
from bitpress_workers.models.checkpoint import Checkpoint, TensorInfo
from bitpress_workers.models.family import Tap
from bitpress_workers.models.outline import Outline


@dataclass(frozen=True)
class BlockSizes:
    """One block.

    name: of the block inside the model. stages: its taps in execution order; linears: [out, in] of each, by
    relative name. tensors: all of the block's, by their full names in the model, as the checkpoint has them.
    """

    name: str
    stages: tuple[tuple[Tap, ...], ...]
    linears: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, TensorInfo]

    @property
    def taps(self) -> tuple[Tap, ...]:
        return tuple(tap for stage in self.stages for tap in stage)

    @property
    def num_weights(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def stored_bytes(self) -> int:
        """In the checkpoint."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def shape(self) -> tuple[Any, ...]:
        """What two blocks have in common that cost the same."""
        return self.stages, tuple(self.linears.items()), self.num_weights, self.stored_bytes


@dataclass(frozen=True)
class ModelSizes:
    """A model.

    outer: tensors outside the blocks. linear_bytes: of all compressed linears in the checkpoint. num_heads: of
    attention. expert_share: share of the tokens that come to one routed expert, were all alike.
    """

    blocks: tuple[BlockSizes, ...]
    hidden_size: int
    outer: Mapping[str, TensorInfo]
    linear_bytes: int
    vocab_size: int
    num_heads: int
    expert_share: float

    @property
    def outer_weights(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.outer.values())


def model_sizes(outline: Outline, checkpoint: Checkpoint) -> ModelSizes:
    """Read a model's sizes off the checkpoint's headers."""
    tensors, config = checkpoint.tensors, checkpoint.config
    blocks = tuple(_block_sizes(outline, checkpoint, index) for index in range(outline.num_blocks))
    linears = [block.tensors[f"{block.name}.{linear}.weight"] for block in blocks for linear in block.linears]
    first_tap = blocks[0].taps[0]
    return ModelSizes(
        blocks=blocks,
        hidden_size=blocks[0].linears[first_tap.linears[0]][1],
        outer={ours: tensors[theirs] for ours, theirs in outline.outer_tensor_names().items()},
        linear_bytes=sum(tensor.bytes for tensor in linears),
        vocab_size=int(config.vocab_size),
        num_heads=int(getattr(config, "num_attention_heads", 1)),
        expert_share=_expert_share(blocks, int(getattr(config, "num_experts_per_tok", None) or 1)),
    )


def _block_sizes(outline: Outline, checkpoint: Checkpoint, index: int) -> BlockSizes:
    names, prefix = outline.block_tensor_names(index), outline.block_name(index)
    linears: dict[str, tuple[int, int]] = {}
    for tap in outline.taps(index):
        for linear in tap.linears:
            rows, columns = checkpoint.tensors[names[f"{prefix}.{linear}.weight"]].shape
            if columns > MAX_COLUMNS:
                raise UnsupportedModel(f"{prefix}.{linear}: expected at most {MAX_COLUMNS} columns, found {columns}")
            linears[linear] = (rows, columns)
    tensors = {ours: checkpoint.tensors[theirs] for ours, theirs in names.items()}
    return BlockSizes(prefix, outline.stages(index), linears, tensors)


def _expert_share(blocks: tuple[BlockSizes, ...], experts_of_token: int) -> float:
    """A router sends a token to so many of a block's experts, each of which has two taps."""
    taps = max(sum(tap.routed for tap in block.taps) for block in blocks)
    return min(1.0, experts_of_token / (taps / 2)) if taps else 1.0
