"""What two cores would need for themselves: the processor seconds along the longest path through a job's shards.

Shards are threads of one process here, and every one notes how long it computes between two meetings with the
others. From one meeting to the next a job takes as long as the shard that has most to do; these times add up. A
machine that does other things as well makes a job last longer, but this figure hardly larger. What passing
tensors between processes takes is not in it.
"""

import time
from collections.abc import Callable
from functools import partial
from threading import local
from typing import Any

from bitpress_workers.pipeline.fleet import LocalFleet, Ref
from bitpress_workers.pipeline.shard import ShardConfig


class PathFleet(LocalFleet):
    """A LocalFleet that notes processor seconds: of each call, of each shard in it, between its meetings."""

    def __init__(self, config: ShardConfig, size: int) -> None:
        super().__init__(config, size)
        self._calls: list[list[list[float]]] = []
        self._thread = local()
        self._wait, self._meeting.wait = self._meeting.wait, self._note_and_wait  # type: ignore[method-assign]

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        self._calls.append([])
        return self._timed(index, method, args)

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        self._calls.append([])
        return [self._timed(index, method, args) for index in range(self.size)]

    def path_seconds(self) -> float:
        return sum(max(seconds) for shards in self._calls for seconds in zip(*shards, strict=True))

    def _timed(self, index: int, method: Callable[..., Any], args: tuple[Any, ...]) -> Ref:
        return self._submit(index, partial(self._call, self._calls[-1], method), (self._shards[index], *args))

    def _call(self, shards: list[list[float]], method: Callable[..., Any], *args: Any) -> Any:
        self._thread.seconds, self._thread.since = [], time.thread_time()
        result = method(*args)
        self._note()
        shards.append(self._thread.seconds)
        return result

    def _note(self) -> None:
        now = time.thread_time()
        self._thread.seconds.append(now - self._thread.since)
        self._thread.since = now

    def _note_and_wait(self) -> None:
        self._note()
        self._wait()
