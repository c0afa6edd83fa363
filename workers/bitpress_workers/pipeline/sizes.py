"""The shapes of a model's parts, from the config and the tensors' headers alone."""

from dataclasses import dataclass
from math import prod

from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Tap
from bitpress_workers.models.outline import Outline


@dataclass(frozen=True)
class BlockSizes:
    """One block. stages: its taps in execution order; linears: [out, in] of each, by relative name."""

    stages: tuple[tuple[Tap, ...], ...]
    linears: dict[str, tuple[int, int]]
    num_weights: int

    @property
    def taps(self) -> tuple[Tap, ...]:
        return tuple(tap for stage in self.stages for tap in stage)


@dataclass(frozen=True)
class ModelSizes:
    """A model. outer_weights: number of weights outside the blocks; linear_bytes: of all compressed linears in
    the checkpoint; num_heads: of attention."""

    blocks: tuple[BlockSizes, ...]
    hidden_size: int
    outer_weights: int
    linear_bytes: int
    vocab_size: int
    num_heads: int


def model_sizes(outline: Outline, checkpoint: Checkpoint) -> ModelSizes:
    """Read a model's sizes off the checkpoint's headers."""
    tensors = checkpoint.tensors
    blocks = tuple(_block_sizes(outline, checkpoint, index) for index in range(outline.num_blocks))
    names = [outline.block_tensor_names(index) for index in range(outline.num_blocks)]
    linears = [
        names[index][f"{outline.block_name(index)}.{linear}.weight"]
        for index, block in enumerate(blocks)
        for linear in block.linears
    ]
    first_tap = blocks[0].taps[0]
    return ModelSizes(
        blocks=blocks,
        hidden_size=blocks[0].linears[first_tap.linears[0]][1],
        outer_weights=sum(prod(tensors[theirs].shape) for theirs in outline.outer_tensor_names().values()),
        linear_bytes=sum(tensors[theirs].bytes for theirs in linears),
        vocab_size=int(checkpoint.config.vocab_size),
        num_heads=int(getattr(checkpoint.config, "num_attention_heads", 1)),
    )


def _block_sizes(outline: Outline, checkpoint: Checkpoint, index: int) -> BlockSizes:
    names, prefix = outline.block_tensor_names(index), outline.block_name(index)
    linears: dict[str, tuple[int, int]] = {}
    for tap in outline.taps(index):
        for linear in tap.linears:
            rows, columns = checkpoint.tensors[names[f"{prefix}.{linear}.weight"]].shape
            linears[linear] = (rows, columns)
    num_weights = sum(prod(checkpoint.tensors[theirs].shape) for theirs in names.values())
    return BlockSizes(outline.stages(index), linears, num_weights)
