"""A job's fleet, made anew when a shard is lost, as long as blocks still appear in between.

It is made anew once, too, when memory runs out: a fleet that takes less does the same work, slower,
to the same bits; see `ShardConfig.thrifty`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from bitpress.artifacts import LedgerEntry
from bitpress.errors import OutOfMemory, WorkerLost
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.member import Members

MAX_LOSSES = 3  # without a new block between them

Result = TypeVar("Result")


@dataclass
class LastingFleet:
    """Does work on a fleet, and again on another one when a shard is lost on the way.

    make: makes a fleet of so many shards, or at least of as many as its second argument says; the
    third: of shards that take less memory. shared_memory: shards may share a host's, so that fewer
    of them have more. losses: what the report says of each.
    """

    make: Callable[[int, int, bool], Fleet]
    size: int
    members: Members
    shared_memory: bool
    losses: list[LedgerEntry] = field(default_factory=list)
    thrifty: bool = False
    _fleet: Fleet | None = None
    _blocks: int = -1
    _losses_since_block: int = 0

    def run(self, work: Callable[[Fleet], Result]) -> Result:
        """Return what `work` returns; it may be begun several times.

        Raises WorkerLost, OutOfMemory when that does not help.
        """
        while True:
            try:
                if self._fleet is None:
                    self._fleet = self.make(self.size, 1 if self.losses else self.size, self.thrifty)
                return work(self._fleet)
            except WorkerLost as error:
                self.close()
                self._count(error)
            except OutOfMemory as error:
                self.close()
                self._shrink(error)

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

    def _shrink(self, error: OutOfMemory) -> None:
        if self.thrifty:
            raise error
        self.thrifty = True
        if self.shared_memory:
            self.size = max(1, self.size // 2)
        where = f"after {len(self.members.blocks())} blocks"
        plan = f"with {self.size} shards, activations in host memory, no block read ahead, one Hessian at a time"
        self.losses.append(
            LedgerEntry(kind="smaller-plan", where=where, detail=f"{error.message}; the job went on {plan}")
        )
        self.members.log(f"{where}: {error.message}; the job goes on {plan}")
