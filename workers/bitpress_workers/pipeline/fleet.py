"""A fleet runs Shard's methods on all shards; the block loop reads the same whatever the fleet.

Calls return references at once; `get` waits for values, which are small: what shards hand to each
other goes through their Group. Methods in which they exchange are called on all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Protocol

import torch

from bitpress_workers.pipeline.exchange import LocalGroup, Meeting
from bitpress_workers.pipeline.memory import out_of_memory
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.shard import Shard, ShardConfig, device_of

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
        """Wait for values; raises the first error as it was raised on its shard. The fleet is of no use then."""
        ...

    def as_completed(self, refs: Sequence[Ref]) -> Iterator[tuple[Ref, Any]]:
        """Yield references with their values as they come; raises as `get` does."""
        ...

    def close(self) -> None:
        """Give back the devices."""
        ...


class FleetMaker(Protocol):
    def __call__(self, config: ShardConfig, size: int, fewest: int, waiting: Callable[[str], None]) -> Fleet:
        """Make a fleet of `size` shards, or of as many as there are devices for, but of `fewest` at least.

        Devices that others hold are waited for; `waiting` is called with the reason, again and again,
        and may raise. Raises InvalidJob when there will never be room for `fewest`.
        """
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
        # One thread per shard keeps a shard's calls in order.
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"shard-{index}") for index in range(size)]
        self._meeting = Meeting(size)
        groups = [LocalGroup(self._meeting, index, device_of(config.device, index)) for index in range(size)]
        # One after the other: a model is built on the meta device by patching torch, for all threads at once.
        self._shards = [self._submit(group.rank, Shard, (config, group)).result() for group in groups]

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        return self._submit(index, method, (self._shards[index], *args))

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        return [self.on(index, method, *args) for index in range(self.size)]

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        return [_value(ref) for ref in refs]

    def as_completed(self, refs: Sequence[Ref]) -> Iterator[tuple[Ref, Any]]:
        return ((ref, _value(ref)) for ref in as_completed(refs))

    def close(self) -> None:
        self._meeting.leave()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def _submit(self, index: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        return self._threads[index].submit(self._run, function, args)

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        try:
            return function(*args)
        except BaseException as error:
            self._meeting.leave(error)  # the other shards may wait for this one
            raise


def _value(ref: Future[Any]) -> Any:
    try:
        return ref.result()
    except (MemoryError, OSError, RuntimeError) as error:
        if found := out_of_memory(error):
            raise found from error
        raise


def make_local_fleet(config: ShardConfig, size: int, fewest: int, waiting: Callable[[str], None]) -> LocalFleet:
    """A FleetMaker; threads never have to wait."""
    return LocalFleet(config, size)
