"""The block loop: one block in hand at a time, compressed, published, and passed through."""

import time
from dataclasses import dataclass, field
from hashlib import sha256

from bitpress.artifacts import BlockReport
from bitpress.jobs import canonical_json
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.plan import Plan
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Publisher, Sidecar, block_name
from bitpress_workers.pipeline.shard import Published, Shard
from bitpress_workers.pipeline.solving import Solver


@dataclass
class BlockLoop:
    """Compresses all blocks of one model, in order.

    Given to every block: the hash chain over all that determines its bytes. `root` is the chain's
    start: tokens, method and version.
    """

    fleet: Fleet
    plan: Plan
    solver: Solver
    publisher: Publisher
    meter: ProgressMeter
    root: str
    records: list[tuple[BlockRecord, Sidecar]] = field(default_factory=list)

    def run(self) -> list[tuple[BlockRecord, Sidecar]]:
        """Compress every block that no earlier attempt has published. The fleet's shards hold the embedded tokens."""
        published = self.publisher.published()
        chain = self.root
        for index in range(len(self.plan.blocks)):
            started = time.monotonic()
            self.meter.block(index)
            self.fleet.get(self.fleet.all(Shard.load, index))
            weights = self.fleet.get([self.fleet.on(0, Shard.fingerprint)])[0]
            chain = sha256(f"{chain} {weights}".encode()).hexdigest()
            self.solver.enter()
            if index in published:
                record, sidecar = published[index]
                self.publisher.check_same_job(sidecar, chain)
                self.fleet.get(self.fleet.all(Shard.prefetch))
                self.fleet.get(self.fleet.all(Shard.install_published, record.key, record.sha256))
            else:
                record, sidecar = self._compress(index, chain, started)
            self.records.append((record, sidecar))
            if index + 1 < len(self.plan.blocks):
                self.fleet.get(self.fleet.all(Shard.advance, "calibration"))
        return self.records

    def _compress(self, index: int, chain: str, started: float) -> tuple[BlockRecord, Sidecar]:
        solved = self.solver.solve(index)
        key = self.publisher.key_of(block_name(index))
        published: Published = self.fleet.get([self.fleet.on(0, Shard.publish, key)])[0]
        report = BlockReport(
            index=index,
            sha256=published.sha256,
            bytes=published.bytes,
            seconds=time.monotonic() - started,
            linears=tuple(solved.linears),
            training_losses=solved.training_losses,
        )
        sidecar = Sidecar(
            chain=chain,
            report=report,
            tensors=published.tensors,
            headers=published.headers,
            ledger=tuple(solved.ledger),
        )
        return self.publisher.block(key, sidecar), sidecar


def chain_root(**facts: object) -> str:
    """Where the hash chain starts: a hash over everything but the blocks' weights that determines their bytes."""
    return sha256(canonical_json(facts).encode()).hexdigest()
