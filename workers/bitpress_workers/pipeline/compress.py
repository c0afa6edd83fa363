"""The block loop: one block in hand at a time; each member compresses, publishes and passes it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from torch import Tensor

from bitpress.jobs import canonical_json
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.block_file import Published, chain_link
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.member import Member, Members
from bitpress_workers.pipeline.placement import micro_batches, share
from bitpress_workers.pipeline.plan import Plan
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Publisher, Sidecar, block_name
from bitpress_workers.pipeline.shard import Shard, stream_name
from bitpress_workers.pipeline.solving import Solved, Solver


@dataclass
class Track:
    """One member's way through all blocks: where what it makes goes, and what is there.

    root: the start of the hash chain over all that determines a block's bytes: tokens, method, versions.
    weights: the chain over the dense blocks alone, as far as they were read.
    """

    member: Member
    publisher: Publisher
    meter: ProgressMeter
    root: str
    published: dict[int, tuple[BlockRecord, Sidecar]] = field(init=False)
    records: dict[int, tuple[BlockRecord, Sidecar]] = field(default_factory=dict)
    weights: str = ""

    def __post_init__(self) -> None:
        self.published = self.publisher.published()

    def reuse(self, index: int, chain: str) -> BlockRecord:
        """Take what an earlier attempt has published. Raises Conflict when it was made from something else."""
        self.publisher.check_same_job(self.published[index][1], chain)
        self.records[index] = self.published[index]
        return self.records[index][0]

    def publish(self, index: int, chain: str, file: Published, solved: Solved, seconds: float) -> None:
        """Publish the evidence of a block whose file lies in the store, and record both."""
        sidecar = Sidecar(
            chain=chain,
            report=solved.report(index, file, seconds),
            tensors=file.tensors,
            headers=file.headers,
            ledger=tuple(solved.ledger),
        )
        record = self.publisher.block(self.publisher.key_of(block_name(index)), sidecar)
        self.records[index] = (record, sidecar)

    def in_order(self) -> list[tuple[BlockRecord, Sidecar]]:
        return [self.records[index] for index in sorted(self.records)]


class Way:
    """A member's way through the blocks with all shards: its own streams of activations, its own hash chain."""

    def __init__(self, fleet: Fleet, track: Track, solver: Solver) -> None:
        self.track, self._fleet, self._solver, self._chain = track, fleet, solver, track.root

    def start(self, tokens: Tensor) -> None:
        """Embed the calibration sequences."""
        self._take_up()
        groups = calibration_groups(self.track.member.plan, self._fleet.size)
        for stream in self._solver.streams:
            self._fleet.get(self._fleet.all(Shard.start, self._named(stream), tokens, groups))

    def take(self, index: int, weights: str, shared_seconds: float) -> None:
        """Compress the block in hand, or reuse what is published, and pass it.

        weights: the dense block's hash. shared_seconds: since it began to be loaded.
        """
        started, track, fleet = time.monotonic(), self.track, self._fleet
        track.meter.block(index)
        self._take_up()
        self._chain = chain_link(self._chain, weights)
        track.weights = chain_link(track.weights, weights)
        self._solver.enter()
        if index in track.published:
            record = track.reuse(index, self._chain)
            fleet.get(fleet.all(Shard.prefetch))
            fleet.get(fleet.all(Shard.install_published, record.key, record.sha256))
            self._pass(index)
        else:
            solved = self._solver.solve(index)
            file: Published = fleet.get([fleet.on(0, Shard.publish, track.publisher.key_of(block_name(index)))])[0]
            self._pass(index)  # while it is written
            fleet.get([fleet.on(0, Shard.finish_publishing)])
            track.publish(index, self._chain, file, solved, shared_seconds + time.monotonic() - started)

    def _pass(self, index: int) -> None:
        """Pass the compressed block, for what comes after it."""
        if index + 1 < len(self.track.member.plan.blocks):
            self._fleet.get(self._fleet.all(Shard.advance, self._named("calibration")))

    def stop(self) -> None:
        for stream in self._solver.streams:
            self._fleet.get(self._fleet.all(Shard.stop, self._named(stream)))

    def _take_up(self) -> None:
        self._fleet.get(self._fleet.all(Shard.take_up, self.track.member.number))

    def _named(self, stream: str) -> str:
        return stream_name(stream, self.track.member.number)


@dataclass
class BlockLoop:
    """Compresses all blocks of one model, in order: each is loaded once, for all members that are left."""

    fleet: Fleet
    members: Members
    ways: Sequence[Way]

    def run(self) -> None:
        """Compress every block that no earlier attempt has published. The fleet's shards hold the embedded tokens."""
        for index in range(len(self.ways[0].track.member.plan.blocks)):
            started = time.monotonic()
            self.fleet.get(self.fleet.all(Shard.load, index))
            weights = self.fleet.get([self.fleet.on(0, Shard.fingerprint)])[0]
            loading = time.monotonic() - started
            for way in self.ways:
                if way.track.member.error is None:
                    with self.members.part(way.track.member, on_shards=True):
                        way.take(index, weights, loading)


def calibration_groups(plan: Plan, num_shards: int) -> list[list[range]]:
    """Micro-batches of each shard: whole slices, each cut for itself."""
    return [
        [
            batch
            for piece in share(len(plan.slices), num_shards, shard)
            for batch in micro_batches(plan.slices[piece], plan.micro_batch)
        ]
        for shard in range(num_shards)
    ]


def chain_root(**facts: object) -> str:
    """Where the hash chain starts: a hash over everything but the blocks' weights that determines their bytes."""
    return sha256(canonical_json(facts).encode()).hexdigest()
