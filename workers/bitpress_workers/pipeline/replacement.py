"""A job's fleet, made anew when a device or its host is lost, as long as blocks still appear in between."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from bitpress.artifacts import LedgerEntry
from bitpress.errors import WorkerLost
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.member import Members

MAX_LOSSES = 3  # without a new block between them

Result = TypeVar("Result")


@dataclass
class LastingFleet:
    """Does work on a fleet, and again on another one when a shard is lost on the way.

    make: makes a fleet of so many shards, or at least of as many as its second argument says.
    losses: what the report says of each.
    """

    make: Callable[[int, int], Fleet]
    size: int
    members: Members
    losses: list[LedgerEntry] = field(default_factory=list)
    _fleet: Fleet | None = None
    _blocks: int = -1
    _losses_since_block: int = 0

    def run(self, work: Callable[[Fleet], Result]) -> Result:
        """Return what `work` returns; it may be begun several times. Raises WorkerLost when that does not help."""
        while True:
            try:
                if self._fleet is None:
                    self._fleet = self.make(self.size, 1 if self.losses else self.size)
                return work(self._fleet)
            except WorkerLost as error:
                self.close()
                self._count(error)

    def close(self) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.close()

    def _count(self, error: WorkerLost) -> None:
        blocks = len(self.members.blocks())
        self._losses_since_block = self._losses_since_block + 1 if blocks == self._blocks else 1
        self._blocks = blocks
        if self._losses_since_block > MAX_LOSSES:
            raise error
        where = f"after {blocks} blocks"
        self.losses.append(LedgerEntry(kind="worker-replaced", where=where, detail=error.message))
        self.members.log(f"{where}: {error.message}; the shards are made anew and go on from there")
