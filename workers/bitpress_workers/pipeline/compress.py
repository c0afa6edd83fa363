"""The block loop: one block in hand at a time, compressed, published, and passed through."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod

from bitpress.artifacts import BlockReport, LedgerEntry, LinearReport
from bitpress.jobs import canonical_json
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.methods.base import Method
from bitpress_workers.models.family import Family, Tap
from bitpress_workers.pipeline.fleet import Fleet, Ref
from bitpress_workers.pipeline.plan import Plan
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Publisher, Sidecar, block_name
from bitpress_workers.pipeline.shard import Evidence, Published, Shard, TapFacts


@dataclass
class BlockLoop:
    """Compresses all blocks of one model, in order.

    Given to every block: the hash chain over all that determines its bytes. `root` is the chain's
    start: tokens, method and version.
    """

    fleet: Fleet
    plan: Plan
    family: Family
    method: Method
    damping: float | None
    publisher: Publisher
    meter: ProgressMeter
    root: str
    records: list[tuple[BlockRecord, Sidecar]] = field(default_factory=list)

    def run(self) -> list[tuple[BlockRecord, Sidecar]]:
        """Compress every block that no earlier attempt has published. The fleet's shards hold the embedded tokens."""
        published = self.publisher.published()
        chain = self.root
        for index in range(self.plan.num_blocks):
            started = time.monotonic()
            self.meter.block(index)
            self.fleet.get(self.fleet.all(Shard.load, index))
            weights = self.fleet.get([self.fleet.on(0, Shard.fingerprint)])[0]
            chain = sha256(f"{chain} {weights}".encode()).hexdigest()
            if index in published:
                record, sidecar = published[index]
                self.publisher.check_same_job(sidecar, chain)
                self.fleet.get(self.fleet.all(Shard.install_published, record.key, record.sha256))
            else:
                record, sidecar = self._compress(index, chain, started)
            self.records.append((record, sidecar))
            if index + 1 < self.plan.num_blocks:
                self.fleet.get(self.fleet.all(Shard.advance, "calibration"))
        return self.records

    def _compress(self, index: int, chain: str, started: float) -> tuple[BlockRecord, Sidecar]:
        linears: list[LinearReport] = []
        ledger: list[LedgerEntry] = []
        for stage in self._stages():
            grams = self.fleet.all(Shard.collect, [tap.name for tap in stage])
            for tap in stage:
                data = self.fleet.on(0, Shard.factor, tap.name, *grams)
                facts = self.fleet.get([self.fleet.on(0, Shard.facts, data)])[0]
                ledger += self._deviations(index, tap, facts)
                for linear, constant_groups in self._solve(index, tap, data, facts, len(linears)):
                    linears.append(linear)
                    ledger += _constant_groups(index, linear.name, constant_groups)
        key = self.publisher.key_of(block_name(index))
        published: Published = self.fleet.get([self.fleet.on(0, Shard.publish, key)])[0]
        report = BlockReport(
            index=index,
            sha256=published.sha256,
            bytes=published.bytes,
            seconds=time.monotonic() - started,
            linears=tuple(linears),
        )
        sidecar = Sidecar(
            chain=chain,
            report=report,
            tensors=published.tensors,
            headers=published.headers,
            ledger=tuple(ledger),
        )
        return self.publisher.block(key, sidecar), sidecar

    def _solve(
        self, index: int, tap: Tap, data: Ref, facts: TapFacts, linears_done: int
    ) -> list[tuple[LinearReport, int]]:
        """Solve a tap's linears on all shards. Returns their reports and numbers of constant groups."""
        started = time.monotonic()
        self.meter.linear(index, ", ".join(tap.linears), linears_done / len(self.plan.linear_shapes))
        agreed: Ref = None
        for _ in range(self.method.survey_rounds):
            surveys = self.fleet.all(Shard.survey, tap.name, data, agreed)
            agreed = self.fleet.on(0, Shard.agree, tap.name, agreed, *surveys)
        parts = self.fleet.all(Shard.solve, tap.name, data, agreed)
        self.fleet.get(self.fleet.all(Shard.install, tap.name, *parts))
        evidence: list[Evidence] = self.fleet.get([self.fleet.on(0, Shard.evidence, name) for name in tap.linears])
        seconds = time.monotonic() - started
        num_weights = sum(prod(found.shape) for found in evidence)
        return [
            (
                LinearReport(
                    name=name,
                    shape=found.shape,
                    bits_per_weight=found.stored_bits / prod(found.shape),
                    relative_error=found.relative_error,
                    outlier_fraction=found.outlier_fraction,
                    damping_used=facts.damping_used,
                    num_tokens=facts.num_tokens,
                    seconds=seconds * prod(found.shape) / num_weights,
                ),
                found.num_constant_groups,
            )
            for name, found in zip(tap.linears, evidence, strict=True)
        ]

    def _stages(self) -> Sequence[Sequence[Tap]]:
        """Taps whose Hessians come from the same forwards."""
        if self.method.propagation == "block":
            return [self.family.taps]
        return [[tap] for tap in self.family.taps]

    def _deviations(self, index: int, tap: Tap, facts: TapFacts) -> list[LedgerEntry]:
        where = f"block {index}, tap {tap.name}"
        entries = []
        if facts.damping_used != self.damping:
            detail = f"damping {self.damping} was not enough to factorize the Hessian; {facts.damping_used} was used"
            entries.append(LedgerEntry(kind="damping-raised", where=where, detail=detail))
        if facts.num_dead:
            detail = f"{facts.num_dead} inputs were zero on every calibration token; their weights are stored as zero"
            entries.append(LedgerEntry(kind="dead-columns", where=where, detail=detail))
        return entries


def _constant_groups(index: int, name: str, number: int) -> list[LedgerEntry]:
    if not number:
        return []
    detail = f"{number} groups of weights are all alike; they are stored as that one value"
    return [LedgerEntry(kind="constant-groups", where=f"block {index}, {name}", detail=detail)]


def chain_root(**facts: object) -> str:
    """Where the hash chain starts: a hash over everything but the blocks' weights that determines their bytes."""
    return sha256(canonical_json(facts).encode()).hexdigest()
