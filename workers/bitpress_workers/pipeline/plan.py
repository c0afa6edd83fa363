"""What a job will do and need, from its spec, the config and the tensors' shapes alone; nothing is loaded."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from bitpress.errors import InvalidJob, OutOfMemory
from bitpress.jobs import JobSpec
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.pipeline.estimate import Estimate, Memory
from bitpress_workers.pipeline.memory import available_host_bytes
from bitpress_workers.pipeline.placement import NUM_SLICES, cut, micro_batch_size, tile_rows
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes

GIB = 2**30


@dataclass(frozen=True)
class Devices:
    """The devices a fleet may use: how many, of which kind, and the memory of each (of the host for CPU cores).

    host_bytes: memory of the host beside accelerators; None: not known, and so no limit.
    """

    kind: Literal["cpu", "cuda"]
    count: int
    memory_bytes: int
    host_bytes: int | None = None

    @classmethod
    def of_host_cores(cls) -> Self:
        return cls("cpu", len(os.sched_getaffinity(0)), available_host_bytes())

    def within(self, memory_gib: float | None) -> Self:
        """The same devices, of each of which (of the host, for CPU cores) no more may be taken; None: all of it."""
        if memory_gib is None:
            return self
        return replace(self, memory_bytes=min(self.memory_bytes, int(memory_gib * GIB)))


@dataclass(frozen=True)
class Plan:
    """Fixed by the job, but for `num_shards`, `offloaded` and `memory`: the same on every fleet, so that bits are.

    offloaded: activations wait in host memory, since accelerators do not hold them beside all else.
    slices: calibration sequences of each slice. micro_batch: sequences of one forward.
    row_tile: rows of one tile.
    """

    num_shards: int
    offloaded: bool
    slices: tuple[range, ...]
    micro_batch: int
    row_tile: int
    blocks: tuple[BlockSizes, ...]
    memory: Memory

    @property
    def peak_bytes(self) -> int:
        """Estimate for one accelerator, for the whole host where there is none."""
        return self.memory.device_bytes or self.memory.host_bytes


def make_plan(
    spec: JobSpec,
    method: Method | BlockMethod,
    sizes: ModelSizes,
    num_windows: int,
    devices: Devices,
    num_members: int = 1,
) -> Plan:
    """Plan a job; num_windows: how many are evaluated, of all datasets; num_members: of the sweep that it belongs to.

    Raises InvalidJob when more accelerators are asked for than there are, OutOfMemory when the
    estimate does not fit, with both numbers and the smallest change of the spec that does.
    """
    num_shards = spec.devices or devices.count
    if devices.kind != "cpu" and num_shards > devices.count:
        raise InvalidJob(f"the job asks for {num_shards} devices; there are {devices.count}")
    calibration, tile = spec.calibration, tile_rows(devices.kind, _heaviest_rows(sizes.blocks))
    one_by_one = isinstance(method, BlockMethod)  # a training step sees one sequence
    kept, moved = _memories(spec, method, sizes, num_windows, devices, num_members)
    offloaded = moved is not None and not _excess(moved, devices)
    memory = moved if moved and offloaded else kept
    if _excess(memory, devices):
        change = _smallest_change(spec, method, sizes, num_windows, devices, num_members)
        raise OutOfMemory(f"the job needs about {_needs(kept, moved, devices)}; {change}")
    return Plan(
        num_shards=num_shards,
        offloaded=offloaded,
        slices=cut(calibration.num_sequences, NUM_SLICES),
        micro_batch=1 if one_by_one else micro_batch_size(calibration.sequence_length),
        row_tile=tile if isinstance(method, BlockMethod) else method.row_tile(tile),
        blocks=sizes.blocks,
        memory=memory,
    )


def _heaviest_rows(blocks: Sequence[BlockSizes]) -> int:
    """Rows of the tap whose solving costs most of all."""
    shapes = (
        (sum(block.linears[name][0] for name in tap.linears), block.linears[tap.linears[0]][1])
        for block in blocks
        for tap in block.taps
    )
    return max(shapes, key=lambda shape: shape[0] * shape[1] ** 2)[0]


def _memories(
    spec: JobSpec,
    method: Method | BlockMethod,
    sizes: ModelSizes,
    num_windows: int,
    devices: Devices,
    num_members: int,
) -> tuple[Memory, Memory | None]:
    """What a job takes, and, where a device has no room for that, what it takes with its activations in host memory."""
    num_shards = spec.devices or devices.count
    estimate = Estimate(spec, method, sizes, num_windows, devices.kind, num_shards, num_members=num_members)
    memory = estimate.memory()
    lacks_room = memory.device_bytes > devices.memory_bytes
    return memory, replace(estimate, offloaded=True).memory() if lacks_room else None


def _needs(kept: Memory, moved: Memory | None, devices: Devices) -> str:
    """What a job has to be given at the least, in words: with its activations in host memory, if that helps."""
    if moved is None:
        return f"{_excess(kept, devices)} ({kept.moment})"
    if moved.device_bytes > devices.memory_bytes:
        return f"{_excess(moved, devices)} ({moved.moment}, with activations in host memory)"
    return f"{_excess(kept, devices)} ({kept.moment}), or {_excess(moved, devices)} (with activations there)"


def _excess(memory: Memory, devices: Devices) -> str:
    """What does not fit, in words; empty when all does."""
    if memory.device_bytes > devices.memory_bytes:
        return f"{_gib(memory.device_bytes)} on a device, which has {_gib(devices.memory_bytes)}"
    host_bytes = devices.memory_bytes if devices.kind == "cpu" else devices.host_bytes
    if host_bytes is not None and memory.host_bytes > host_bytes:
        return f"{_gib(memory.host_bytes)} on this host, which has {_gib(host_bytes)}"
    return ""


def _smallest_change(
    spec: JobSpec,
    method: Method | BlockMethod,
    sizes: ModelSizes,
    num_windows: int,
    devices: Devices,
    num_members: int,
) -> str:
    """Try single changes: first those that leave the result as it is, then those that cost least of it."""

    def fits(changed: JobSpec, windows: int, members: int = num_members) -> bool:
        ways = _memories(changed, method, sizes, windows, devices, members)
        return any(memory is not None and not _excess(memory, devices) for memory in ways)

    for shards in _other_shards(spec, devices):
        if fits(spec.model_copy(update={"devices": shards}), num_windows):
            return f'it fits with "devices": {shards}'
    if windows := _most(num_windows - 1, lambda windows: fits(spec, windows)):
        return f"it fits with {windows} windows evaluated in all, not {num_windows} (evaluation.max_sequences)"
    if num_members > 1 and fits(spec, num_windows, members=1):
        return "it fits as a job of its own, and with fewer methods in one sweep"
    calibration = spec.calibration

    def shorter(sequences: int) -> JobSpec:
        return spec.model_copy(update={"calibration": calibration.model_copy(update={"num_sequences": sequences})})

    if sequences := _most(calibration.num_sequences - 1, lambda number: fits(shorter(number), num_windows)):
        return f"it fits with calibration.num_sequences {sequences}, not {calibration.num_sequences}"
    least = min(
        (
            Estimate(shorter(1), method, sizes, 0, devices.kind, shards, offloaded=True).memory()
            for shards in (1, devices.count)
        ),
        key=lambda memory: memory.device_bytes or memory.host_bytes,
    )
    return (
        f"even one sequence, without evaluation, on the best number of shards needs "
        f"{_gib(least.device_bytes or least.host_bytes)}: it takes devices with more memory"
    )


def _other_shards(spec: JobSpec, devices: Devices) -> Iterator[int]:
    """On one host fewer shards need less; accelerators share what they hold."""
    now = spec.devices or devices.count
    yield from range(now - 1, 0, -1) if devices.kind == "cpu" else range(now + 1, devices.count + 1)


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number of 1 .. limit that fits, given that less needs less; 0 when none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
