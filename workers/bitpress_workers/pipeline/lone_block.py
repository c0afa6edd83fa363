"""A block that one shard solves alone, on the dense model's activations: its part of an independent job.

One forward gathers the Hessians of all taps. Several methods may be given the same block: they share its
Hessians, and those that damp and order alike its factors too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear
from bitpress_workers.methods.base import Method
from bitpress_workers.models.family import Tap
from bitpress_workers.numerics.hessian import Factoring, Gram, Node, reduce_tree
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.block_file import Published
from bitpress_workers.pipeline.evidence import Evidence, TapData, TapFacts
from bitpress_workers.pipeline.exchange import LocalGroup, Meeting
from bitpress_workers.pipeline.row_solving import RowSolving
from bitpress_workers.pipeline.tap_hessians import collect, factorized


@dataclass(frozen=True)
class SolvedTap:
    """What the report says of a tap, and of its linears in their order."""

    facts: TapFacts
    evidence: tuple[Evidence, ...]
    seconds: float


@dataclass
class LoneBlock:
    """A dense block whose taps are solved by one shard, for several methods; its weights stay as they are.

    methods: by member, each with its row tile.
    """

    methods: Mapping[int, tuple[Method, int]]
    block: nn.Module
    index: int
    name: str
    taps: Sequence[Tap]
    slices: Sequence[range]
    device: torch.device
    _grams: dict[str, dict[Node, Gram]] = field(default_factory=dict)

    def gather(self, stream: Activations, forward: Callable[[int], object]) -> None:
        """Make the Hessians of all taps. forward: runs the block over a micro-batch of the stream."""
        self._grams = collect(self.block, self.taps, stream, self.slices, forward)

    def solve(self) -> dict[int, "LoneResult | NumericalError"]:
        """Return what became of the block for each member; what fails for one leaves the others alone."""
        results: dict[int, LoneResult | NumericalError] = {member: LoneResult({}, {}) for member in self.methods}
        for tap in self.taps:
            where = f"{self.name}, tap {tap.name}"
            gram = reduce_tree(self._grams.pop(tap.name), len(self.slices))
            for members in self._by_factoring().values():
                try:
                    data = factorized(where, self.methods[members[0]][0], gram)
                except NumericalError as error:
                    results |= dict.fromkeys(members, error)
                    continue
                for member in members:
                    results[member] = self._solve(member, tap.name, data, results[member])
        return results

    def _solve(
        self, member: int, tap: str, data: TapData, result: "LoneResult | NumericalError"
    ) -> "LoneResult | NumericalError":
        if isinstance(result, NumericalError):
            return result
        started = time.monotonic()
        method, row_tile = self.methods[member]
        alone = LocalGroup(Meeting(1), 0, self.device)
        rows = RowSolving(
            method, alone, self.block, self.index, self.name, self.taps, slices=self.slices, row_tile=row_tile
        )
        try:
            solved = rows.solve_with(tap, data)
        except NumericalError as error:
            return error
        evidence = tuple(found for _, found in solved.values())
        linears = {name: compressed for name, (compressed, _) in solved.items()}
        taps = {**result.taps, tap: SolvedTap(data.facts(), evidence, time.monotonic() - started)}
        return LoneResult({**result.linears, **linears}, taps)

    def _by_factoring(self) -> dict[Factoring | None, list[int]]:
        """Members whose factors are the same."""
        alike: dict[Factoring | None, list[int]] = {}
        for member, (method, _) in self.methods.items():
            alike.setdefault(method.factoring, []).append(member)
        return alike


@dataclass(frozen=True)
class LoneResult:
    """One member's compressed linears, by relative name, and what the report says, by tap."""

    linears: Mapping[str, CompressedLinear]
    taps: Mapping[str, SolvedTap]


@dataclass(frozen=True)
class LoneBlocks:
    """A block compressed by one shard alone. chain: over all dense blocks so far.

    results: by member, the published file, what the report says of each tap, seconds since the block was taken.
    """

    chain: str
    results: Mapping[int, tuple[Published, Mapping[str, SolvedTap], float] | NumericalError]
