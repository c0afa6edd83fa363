"""How a block in hand is compressed: tap by tap, each linear given its Hessian, or all linears by training."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum, prod
from typing import ClassVar, Protocol

from bitpress.artifacts import BlockReport, LedgerEntry, LinearReport
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.family import Tap
from bitpress_workers.pipeline.block_file import Published
from bitpress_workers.pipeline.block_training import TrainedPart
from bitpress_workers.pipeline.evidence import Evidence, TapFacts
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.ledger import linear_entries, tap_entries, trained_expert_entries
from bitpress_workers.pipeline.plan import Plan
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.shard import Shard


@dataclass
class Solved:
    """What the report says of one block. training_losses: the mean loss of each epoch."""

    linears: list[LinearReport] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)
    training_losses: tuple[float, ...] = ()

    def add_tap(
        self, index: int, tap: Tap, facts: TapFacts, evidence: Sequence[Evidence], seconds: float, damping: float | None
    ) -> None:
        """Add a tap of block `index`, solved in so many seconds; damping: what the spec asks for."""
        self.ledger += tap_entries(index, tap, facts, damping)
        num_weights = sum(prod(found.shape) for found in evidence)
        for name, found in zip(tap.linears, evidence, strict=True):
            self.linears.append(
                LinearReport(
                    name=name,
                    shape=found.shape,
                    bits_per_weight=found.stored_bits / prod(found.shape),
                    relative_error=found.relative_error,
                    outlier_fraction=found.outlier_fraction,
                    damping_used=facts.damping_used,
                    num_tokens=facts.num_tokens,
                    seconds=seconds * prod(found.shape) / num_weights,
                )
            )
            self.ledger += linear_entries(index, name, found.deviations)

    def report(self, index: int, published: Published, seconds: float) -> BlockReport:
        """The evidence of a block whose file is published."""
        return BlockReport(
            index=index,
            sha256=published.sha256,
            bytes=published.bytes,
            seconds=seconds,
            linears=tuple(self.linears),
            training_losses=self.training_losses,
        )


class Solver(Protocol):
    """streams: those that pass through all blocks, the compressed model's first."""

    streams: ClassVar[tuple[str, ...]]

    def enter(self) -> None:
        """Do what is due for every dense block in hand, published or not."""
        ...

    def solve(self, index: int) -> Solved:
        """Compress the block in hand, on all shards; the next one is read meanwhile."""
        ...


@dataclass
class TapSolver:
    """For methods that solve rows; damping: what the spec asks for, None when the method has none."""

    fleet: Fleet
    plan: Plan
    method: Method
    damping: float | None
    meter: ProgressMeter
    streams: ClassVar[tuple[str, ...]] = ("calibration",)

    def enter(self) -> None:
        """Nothing: only the compressed model is looked at."""

    def solve(self, index: int) -> Solved:
        solved, num_linears = Solved(), len(self.plan.blocks[index].linears)
        self.fleet.get(self.fleet.all(Shard.begin_solving))
        stages = self._stages(index)
        for number, stage in enumerate(stages, start=1):
            of_shards: list[dict[str, TapFacts]] = self.fleet.get(
                self.fleet.all(Shard.factorize, [tap.name for tap in stage])
            )
            if number == len(stages):  # the block's last Hessians are made
                self.fleet.get(self.fleet.all(Shard.prefetch))
            facts = {name: found for of_shard in of_shards for name, found in of_shard.items()}
            for tap in stage:
                self.meter.linear(index, ", ".join(tap.linears), len(solved.linears) / num_linears)
                started = time.monotonic()
                evidence: list[Evidence] = self.fleet.get(self.fleet.all(Shard.solve, tap.name))[0]
                solved.add_tap(index, tap, facts[tap.name], evidence, time.monotonic() - started, self.damping)
        return solved

    def _stages(self, index: int) -> Sequence[Sequence[Tap]]:
        """Taps whose Hessians come from the same forwards."""
        block = self.plan.blocks[index]
        return [block.taps] if self.method.propagation == "block" else block.stages


@dataclass
class BlockTrainer:
    """For methods that train blocks; see `block_training`."""

    fleet: Fleet
    plan: Plan
    method: BlockMethod
    meter: ProgressMeter
    streams: ClassVar[tuple[str, ...]] = ("calibration", "reference")

    def enter(self) -> None:
        """The dense model's activations pass through the block, published or not."""
        self.fleet.get(self.fleet.all(Shard.pass_reference))

    def solve(self, index: int) -> Solved:
        started = time.monotonic()
        self.fleet.get(self.fleet.all(Shard.begin_training))
        self.fleet.get(self.fleet.all(Shard.prefetch))
        for epoch in range(self.method.epochs):
            self.meter.linear(index, None, epoch / self.method.epochs)
            self.fleet.get(self.fleet.all(Shard.train))
        found: list[tuple[dict[str, TrainedPart], list[float]]] = self.fleet.get(self.fleet.all(Shard.finish_training))
        parts, losses = [of_shard for of_shard, _ in found], found[0][1]
        solved = Solved(training_losses=_means(losses, self.method.epochs))
        taps = {name: tap for tap in self.plan.blocks[index].taps for name in tap.linears}
        num_weights = sum(prod(part.shape) for part in parts[0].values())
        seconds_per_weight = (time.monotonic() - started) / num_weights
        for name, part in parts[0].items():
            solved.linears.append(_trained_report(name, [of_shard[name] for of_shard in parts], seconds_per_weight))
            solved.ledger += linear_entries(index, name, {"constant-groups": part.num_constant_rows})
            num_tokens = solved.linears[-1].num_tokens
            solved.ledger += trained_expert_entries(index, taps[name], name, num_tokens, part.shape[1])
        return solved


def _trained_report(name: str, parts: Sequence[TrainedPart], seconds_per_weight: float) -> LinearReport:
    """The evidence of one linear from what each shard's sequences tell."""
    errors = [error for part in parts for error in part.errors]
    reference = fsum(error.reference for error in errors)
    return LinearReport(
        name=name,
        shape=parts[0].shape,
        bits_per_weight=parts[0].stored_bits / prod(parts[0].shape),
        relative_error=fsum(error.error for error in errors) / reference if reference else 0.0,
        outlier_fraction=0.0,
        damping_used=None,
        num_tokens=sum(error.num_tokens for error in errors),
        seconds=seconds_per_weight * prod(parts[0].shape),
    )


def _means(losses: Sequence[float], epochs: int) -> tuple[float, ...]:
    size = len(losses) // epochs if epochs else 1
    return tuple(fsum(losses[start : start + size]) / size for start in range(0, len(losses), size))
