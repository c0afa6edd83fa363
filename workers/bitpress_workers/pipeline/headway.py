"""Whether shards get on. A call that hangs never ends by itself, and those who wait for it do not either.

A shard is asked where its thread is, which another thread of its process answers. It stands still when
that place stays the same: no forward, no exchange, not another instruction in between. Who waits for
other shards may stand still as long as one of these does not.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Position:
    """Where a shard is. place: another one whenever it has moved on. waits_for: other shards, in words, or nothing."""

    busy: bool
    place: tuple[int, ...] = ()
    waits_for: str = ""


def stack_of(thread: int) -> int:
    """Return a hash of the instructions that a thread of this process is at."""
    frame = sys._current_frames().get(thread)
    instructions = []
    while frame is not None:
        instructions.append((frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lasti))
        frame = frame.f_back
    return hash(tuple(instructions))


@dataclass
class Watch:
    """Looks at all shards of a fleet, as often as it is told where they are."""

    size: int
    _positions: list[Position | None] = field(init=False)
    _moved: list[tuple[Position | None, float]] = field(init=False)

    def begin(self) -> None:
        """Count from now on."""
        self._positions = [None] * self.size
        self._moved = [(None, time.monotonic())] * self.size

    def look(self, positions: Sequence[Position | None]) -> None:
        """Take note of where all shards are; None: that one has not answered."""
        self._positions = list(positions)
        for index, position in enumerate(positions):
            if position not in (None, self._moved[index][0]):
                self._moved[index] = position, time.monotonic()

    def standing(self, seconds: float) -> tuple[int, str] | None:
        """Return a shard that keeps others from getting on, or is kept by them, for so long, and how; None: they do."""
        now = time.monotonic()
        busy = [index for index, position in enumerate(self._positions) if position is None or position.busy]
        long = [index for index in busy if now - self._moved[index][1] > seconds]
        for index in long:
            if self._positions[index] is None:
                return index, "does not answer"
        for index in long:
            if not self._waits_for(index):
                return index, "stands still"
        if long and long == busy:
            return long[0], f"waits for {self._waits_for(long[0])}, and nobody gets on"
        return None

    def _waits_for(self, index: int) -> str:
        position = self._positions[index]
        return position.waits_for if position else ""
