"""Solving a block's linears tap by tap, each given its Hessian: one shard's part of it.

All shards run the same calls and exchange on the way. A tap belongs to one of them, its owner, in
turn: the others' Grams go there, and the owner alone factorizes and agrees, so that shards factorize
different taps at the same time. Then the factor goes to all shards, each solves its rows, and all
rows go to all shards.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear, concatenate
from bitpress_workers.methods.base import Agreement, Method, RowSolver, SolvedRows, Survey
from bitpress_workers.models.family import Tap
from bitpress_workers.numerics.hessian import Gram, Node, reduce_tree
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.evidence import Evidence, Part, TapData, TapFacts, join_evidence, tile_errors
from bitpress_workers.pipeline.exchange import Group
from bitpress_workers.pipeline.placement import rows_of
from bitpress_workers.pipeline.tap_hessians import collect, factorized

Agreements = Mapping[str, Agreement]


class RowSolving:
    """The dense block in hand, whose linears are solved one tap after the other."""

    def __init__(
        self,
        method: Method,
        group: Group,
        block: nn.Module,
        block_index: int,
        block_name: str,
        taps: Sequence[Tap],
        *,
        slices: Sequence[range],
        row_tile: int,
        one_by_one: bool = False,
    ) -> None:
        """slices: calibration sequences of each slice. row_tile: rows of one tile.

        one_by_one: run forwards for each tap, so that its Grams alone are in memory; no bit depends on it.
        """
        self._method, self._group, self._block = method, group, block
        self._block_index, self._name = block_index, block_name
        self._taps = {tap.name: tap for tap in taps}
        self._owners = {tap.name: number % group.size for number, tap in enumerate(taps)}
        self._slices, self._row_tile, self._one_by_one = slices, row_tile, one_by_one
        self._factorized: dict[str, TapData] = {}

    def factorize(self, names: Sequence[str], activations: Activations) -> dict[str, TapFacts]:
        """Make the Hessians of some taps from the same forwards, and factorize them.

        Returns what the report says of those taps that this shard owns.
        """
        if self._one_by_one and len(names) > 1:
            return {tap: facts for name in names for tap, facts in self.factorize([name], activations).items()}
        taps = [self._taps[name] for name in names]
        collected = collect(
            self._block,
            taps,
            activations,
            self._slices,
            lambda batch: activations.forward(self._block, self._block_index, batch),
        )
        merged = {name: self._merge(collected.pop(name), self._owners[name]) for name in names}
        facts = {}
        for name in names:
            gram = merged.pop(name)
            if gram is not None:
                self._factorized[name] = factorized(f"{self._name}, tap {name}", self._method, gram)
                facts[name] = self._factorized[name].facts()
        return facts

    def solve(self, name: str) -> dict[str, tuple[CompressedLinear, Evidence]]:
        """Solve the linears of a factorized tap: all of their rows are here afterwards."""
        return self.solve_with(name, self._group.broadcast(self._factorized.pop(name, None), self._owners[name]))

    def solve_with(self, name: str, data: TapData) -> dict[str, tuple[CompressedLinear, Evidence]]:
        """Solve the linears of a tap whose factor all shards have."""
        parts = self._group.all_gather(self._solve_rows(name, data))
        solved = {}
        for linear in self._taps[name].linears:
            of_linear: list[Part] = [part[linear] for part in parts if linear in part]
            compressed = concatenate([part.solved.compressed for part in of_linear])
            solved[linear] = (compressed, join_evidence(compressed, of_linear))
        return solved

    def _merge(self, nodes: dict[Node, Gram], owner: int) -> Gram | None:
        """Merge all shards' Grams of a tap where its owner is."""
        parts: list[dict[Node, Gram]] = self._group.gather(nodes, owner)
        if self._group.rank != owner:
            return None
        held = {node: gram for part in parts for node, gram in part.items()}
        del nodes, parts  # each Gram is let go as soon as it is merged
        return reduce_tree(held, len(self._slices))

    def _solve_rows(self, tap: str, data: TapData) -> dict[str, Part]:
        """Solve this shard's rows of a tap's linears; a linear of which it has none is left out."""
        rows = self._rows(tap)
        solver = self._begin(rows, data) if rows else None
        agreed: Agreements | None = None
        for _ in range(self._method.survey_rounds):
            agreed = self._agree(tap, self._survey(solver, rows, agreed), agreed)
        if solver is None:
            return {}
        solved = solver.solve(None if agreed is None else [agreed[name] for name in rows])
        return {name: self._part(name, of, self._next(name, solved), data) for name, of in rows.items()}

    def _next(self, name: str, solved: Iterator[SolvedRows]) -> SolvedRows:
        try:
            return next(solved)
        except NumericalError as error:
            raise NumericalError(f"{self._name}.{name}: {error.message}") from error

    def _survey(
        self, solver: RowSolver | None, rows: Mapping[str, range], agreed: Agreements | None
    ) -> dict[str, Sequence[Survey]]:
        if solver is None:
            return {}
        surveys = solver.survey(None if agreed is None else [agreed[name] for name in rows])
        return dict(zip(rows, surveys, strict=True))

    def _agree(self, tap: str, survey: Mapping[str, Sequence[Survey]], agreed: Agreements | None) -> Agreements:
        """Merge the surveys of all shards, linear by linear."""
        owner = self._owners[tap]
        surveys: list[Mapping[str, Sequence[Survey]]] = self._group.gather(survey, owner)
        merged = {
            name: self._method.agree(
                [found for part in surveys for found in part.get(name, ())], agreed and agreed[name]
            )
            for name in (self._taps[tap].linears if self._group.rank == owner else ())
        }
        result: Agreements = self._group.broadcast(merged, owner)
        return result

    def _begin(self, rows: Mapping[str, range], data: TapData) -> RowSolver:
        # Fresh tensors, so that tiles lie alike in memory on every fleet.
        weights = [self._weight(name)[of.start : of.stop].to(torch.float32, copy=True) for name, of in rows.items()]
        return self._method.begin(weights, data.factor, self._row_tile)

    def _part(self, name: str, rows: range, solved: SolvedRows, data: TapData) -> Part:
        weight_RI = self._weight(name)[rows.start : rows.stop]
        return Part(solved, tuple(tile_errors(weight_RI, solved.compressed, data.gram, self._row_tile)))

    def _rows(self, tap: str) -> dict[str, range]:
        num_rows = {name: len(self._weight(name)) for name in self._taps[tap].linears}
        return rows_of(num_rows, self._row_tile, self._group.size, self._group.rank)

    def _weight(self, name: str) -> Tensor:
        return self._block.get_parameter(f"{name}.weight").data
