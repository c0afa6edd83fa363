"""The independent strategy: ranges of blocks, each calibrated by one shard on the dense model's activations."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bitpress.errors import NumericalError
from bitpress_workers.pipeline.block_file import chain_link
from bitpress_workers.pipeline.compress import Track
from bitpress_workers.pipeline.fleet import Fleet, Ref
from bitpress_workers.pipeline.lone_block import LoneBlocks
from bitpress_workers.pipeline.member import Members
from bitpress_workers.pipeline.placement import share
from bitpress_workers.pipeline.publish import block_name
from bitpress_workers.pipeline.shard import RANGE, Shard
from bitpress_workers.pipeline.solving import Solved


@dataclass
class IndependentLoop:
    """Compresses the blocks that no earlier attempt has published, each shard a range of them, in any order.

    A block that several members need is calibrated once for all of them. A block's link of the hash chain is over a
    member's root and all dense weights up to the block.
    """

    fleet: Fleet
    members: Members
    tracks: Sequence[Track]
    tokens: Tensor
    batches: Sequence[range]

    def run(self) -> None:
        """batches: micro-batches of all sequences, rows of `tokens`."""
        blocks = range(len(self.tracks[0].member.plan.blocks))
        wanted = [index for index in blocks if any(index not in track.published for track in self.tracks)]
        calls = self._call(ranges(wanted, len(blocks), self.fleet.size))
        for ref, lone in self.fleet.as_completed(list(calls)):
            index = calls[ref]
            for track in self.tracks:
                if index is not None and track.member.error is None:
                    with self.members.part(track.member, on_shards=False):
                        self._take(track, index, lone)
                        track.meter.block(len(track.records))

    def _call(self, spans: Sequence[range]) -> dict[Ref, int | None]:
        """Make all calls of all shards, which wait for each other where they must. Returns the block of each."""
        calls: dict[Ref, int | None] = {}
        for shard, span in enumerate(spans):
            calls[self.fleet.on(shard, Shard.begin_range, span.start, self.tokens, self.batches)] = None
            if shard + 1 < len(spans):
                calls[self.fleet.on(shard, Shard.hand_over, span)] = None
            for index in span:
                calls[self.fleet.on(shard, Shard.compress_alone, index, self._keys(index))] = index
            calls[self.fleet.on(shard, Shard.stop, RANGE)] = None
        return calls

    def _keys(self, index: int) -> dict[int, str]:
        """Where a block goes, by the number of each member that needs it."""
        needing = (track for track in self.tracks if index not in track.published)
        return {track.member.number: track.publisher.key_of(block_name(index)) for track in needing}

    def _take(self, track: Track, index: int, lone: LoneBlocks) -> None:
        chain = chain_link(track.root, lone.chain)
        if index + 1 == len(track.member.plan.blocks):
            track.weights = lone.chain
        if index in track.published:
            track.reuse(index, chain)
            return
        result = lone.results[track.member.number]
        if isinstance(result, NumericalError):
            raise result
        file, taps, seconds = result
        solved = Solved()
        for tap in track.member.plan.blocks[index].taps:
            found = taps[tap.name]
            solved.add_tap(index, tap, found.facts, found.evidence, found.seconds, track.member.damping)
        track.publish(index, chain, file, solved, seconds)


def ranges(wanted: Sequence[int], num_blocks: int, num_shards: int) -> list[range]:
    """Cut 0..num_blocks into consecutive ranges, one for each shard that has work: equal parts of what is wanted."""
    parts = min(max(len(wanted), 1), num_shards)
    starts = [0] + [wanted[share(len(wanted), parts, part).start] for part in range(1, parts)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], num_blocks], strict=True)]
