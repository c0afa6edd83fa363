"""What passes between the shards of a job while a block's linears are solved, in bytes of tensors.

For each tap three things cross, one after the other: the others' Grams to the tap's owner, the Gram and its
factor from the owner to all, each shard's solved rows to all. What methods agree on (SEPTQ's histograms, SpQR's
variances) and the headers of messages are small beside these and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitpress.methods import MethodConfig, PTQ161Config
from bitpress_workers.models.family import Tap
from bitpress_workers.numerics.hessian import gram_size
from bitpress_workers.pipeline.placement import rows_of, share
from bitpress_workers.pipeline.sizes import BlockSizes
from bitpress_workers.pipeline.storage import stored_bits


@dataclass(frozen=True)
class TapTraffic:
    """Bytes of one tap.

    grams: that its owner receives. factor: of its Gram and its factor, that every other shard receives.
    rows: of its solved linears, that all shards together hold.
    """

    grams: int
    factor: int
    rows: int

    @property
    def through_one_link(self) -> int:
        """What passes through the link that is busiest: a broadcast reaches all at the speed of one link."""
        return self.grams + self.factor + self.rows

    def total(self, num_shards: int) -> int:
        """What all shards together receive."""
        return self.grams + (num_shards - 1) * (self.factor + self.rows)


def block_traffic(
    method: MethodConfig, block: BlockSizes, num_slices: int, row_tile: int, num_shards: int, kind: str
) -> list[TapTraffic]:
    """Of each of a block's taps, in order; none for one shard, or for a method that trains whole blocks."""
    if num_shards == 1 or isinstance(method, PTQ161Config):
        return []
    return [
        _tap_traffic(method, block, tap, number % num_shards, num_slices, row_tile, num_shards, kind)
        for number, tap in enumerate(block.taps)
    ]


def num_nodes(slices: range) -> int:
    """Grams that a shard holds of one tap when its slices are merged: the largest subtrees that they fill."""
    nodes, start = 0, slices.start
    while start < slices.stop:
        length = 1
        while start % (2 * length) == 0 and start + 2 * length <= slices.stop:
            length *= 2
        nodes, start = nodes + 1, start + length
    return nodes


def _tap_traffic(
    method: MethodConfig,
    block: BlockSizes,
    tap: Tap,
    owner: int,
    num_slices: int,
    row_tile: int,
    num_shards: int,
    kind: str,
) -> TapTraffic:
    num_columns = block.linears[tap.linears[0]][1]
    upper = 4 * gram_size(num_columns, torch.device(kind))  # of a Gram, and of a factor
    others = [share(num_slices, num_shards, shard) for shard in range(num_shards) if shard != owner]
    has_factor, in_order = hasattr(method, "damping"), getattr(method, "order", "natural") == "activation"
    return TapTraffic(
        grams=sum(num_nodes(slices) for slices in others) * upper,
        factor=(1 + has_factor) * upper + num_columns * (1 + 8 * in_order),  # which are dead, and in which order
        rows=_rows(method, block, tap.linears, row_tile, num_shards),
    )


def _rows(method: MethodConfig, block: BlockSizes, linears: Sequence[str], row_tile: int, num_shards: int) -> int:
    num_rows = {name: block.linears[name][0] for name in linears}
    parts = [rows_of(num_rows, row_tile, num_shards, shard) for shard in range(num_shards)]
    return sum(
        stored_bits(method, (len(rows), block.linears[name][1])) // 8 for part in parts for name, rows in part.items()
    )
