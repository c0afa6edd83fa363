"""A fleet runs Shard's methods on all shards; the block loop reads the same whatever the fleet.

Calls return references at once. A reference may be an argument of a later call and is resolved
there, so tensors pass from shard to shard without visiting the caller; `get` waits for values.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from bitpress.errors import OutOfMemory
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.shard import Shard, ShardConfig

Ref = Any


class Fleet(Protocol):
    """All shards of one job."""

    size: int

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        """Call `method` (a function of Shard) on one shard."""
        ...

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        """Call `method` on every shard with the same arguments."""
        ...

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """Wait for values; raises the first shard's error as it was raised there."""
        ...

    def close(self) -> None:
        """Give back the devices."""
        ...


def local_devices() -> Devices:
    """Accelerators of this process, else its CPU cores: one core is one device."""
    if torch.cuda.is_available():
        memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
        return Devices("cuda", torch.cuda.device_count(), memory)
    return Devices.of_host_cores()


class LocalFleet:
    """Every shard in this process, each with a thread of its own; the reference for all fleets."""

    def __init__(self, config: ShardConfig, size: int) -> None:
        self.size = size
        # One thread per shard keeps a shard's calls in order; a call only waits for calls made before it.
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"shard-{index}") for index in range(size)]
        # One after the other: a model is built on the meta device by patching torch, for all threads at once.
        self._shards = [self._submit(index, Shard, (config, index, size)).result() for index in range(size)]

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        return self._submit(index, method, (self._shards[index], *args))

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        return [self.on(index, method, *args) for index in range(self.size)]

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        try:
            return [ref.result() for ref in refs]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"a device ran out of memory: {error}") from error

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def _submit(self, index: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        return self._threads[index].submit(lambda: function(*(_resolve(arg) for arg in args)))


def _resolve(arg: Any) -> Any:
    return arg.result() if isinstance(arg, Future) else arg
