"""A driver's sign of life: a file that is touched for as long as its main thread gets on, and whoever looks at it.

Its lease says nothing of that, which the dispatcher renews.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from bitpress_workers.pipeline.headway import stack_of

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Pulse:
    """Touches `path`: at every `beat`, and whenever a thread that is followed is at other instructions than before."""

    path: Path

    def beat(self) -> None:
        self.path.touch()

    def follow(self, thread: int) -> None:
        """Look at a thread of this process until the process ends; it need not know of that."""
        threading.Thread(target=self._follow, args=(thread,), name="pulse", daemon=True).start()

    def _follow(self, thread: int) -> None:
        place = 0
        while True:
            if (now := stack_of(thread)) != place:
                place = now
                self.beat()
            time.sleep(LOOK_SECONDS)


@dataclass
class Listener:
    """Hears how long another process's pulse has been silent."""

    path: Path
    _last: int = 0
    _since: float = field(default_factory=time.monotonic)

    def silence(self) -> float:
        """Seconds without a beat, as far as they were noticed here."""
        last = self.path.stat().st_mtime_ns if self.path.exists() else 0
        if last != self._last:
            self._last, self._since = last, time.monotonic()
        return time.monotonic() - self._since
