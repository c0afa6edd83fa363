"""What a job will do and need, from its spec, the config and the tensors' shapes alone; nothing is loaded."""

import os
from dataclasses import dataclass
from math import prod
from typing import Literal, Self

from bitpress.errors import InvalidJob, OutOfMemory
from bitpress.jobs import JobSpec
from bitpress_workers.methods.base import Method
from bitpress_workers.models.family import Family
from bitpress_workers.pipeline.placement import NUM_SLICES, cut, micro_batch_size

ROW_TILE = {"cpu": 64, "cuda": 1024}  # rows of one GEMM: small enough to share out, large enough to be fast
BASE_BYTES = 700 * 2**20  # a process with torch and transformers imported


@dataclass(frozen=True)
class Devices:
    """The devices a fleet may use: how many, of which kind, and the memory of each (of the host for CPU cores)."""

    kind: Literal["cpu", "cuda"]
    count: int
    memory_bytes: int

    @classmethod
    def of_host_cores(cls) -> Self:
        return cls("cpu", len(os.sched_getaffinity(0)), available_host_bytes())


@dataclass(frozen=True)
class Plan:
    """Fixed by the job, but for `num_shards` and `peak_bytes`: the same on every fleet, so that bits are.

    slices: calibration sequences of each slice. micro_batch: sequences of one forward.
    row_tile: rows of one tile. peak_bytes: estimate for the whole host (CPU) or one device.
    """

    num_shards: int
    slices: tuple[range, ...]
    micro_batch: int
    row_tile: int
    num_blocks: int
    linear_shapes: dict[str, tuple[int, int]]
    peak_bytes: int


def make_plan(
    spec: JobSpec,
    method: Method,
    family: Family,
    num_blocks: int,
    tensor_shapes: dict[str, tuple[int, ...]],
    outer_shapes: list[tuple[int, ...]],
    devices: Devices,
) -> Plan:
    """Plan a job.

    tensor_shapes: of one block, relative names. outer_shapes: of the tensors outside the blocks.
    Raises InvalidJob when more accelerators are asked for than there are, OutOfMemory when the
    estimate does not fit, with both numbers.
    """
    num_shards = spec.devices or devices.count
    if devices.kind != "cpu" and num_shards > devices.count:
        raise InvalidJob(f"the job asks for {num_shards} devices; there are {devices.count}")
    linears = {name: _matrix(tensor_shapes[f"{name}.weight"]) for tap in family.taps for name in tap.linears}
    calibration = spec.calibration
    plan = Plan(
        num_shards=num_shards,
        slices=cut(calibration.num_sequences, NUM_SLICES),
        micro_batch=micro_batch_size(calibration.sequence_length),
        row_tile=method.row_tile(ROW_TILE[devices.kind]),
        num_blocks=num_blocks,
        linear_shapes=linears,
        peak_bytes=_peak_bytes(spec, method, family, tensor_shapes, linears, outer_shapes, devices, num_shards),
    )
    if plan.peak_bytes > devices.memory_bytes:
        where = "this host" if devices.kind == "cpu" else "a device"
        raise OutOfMemory(
            f"the job needs about {_gib(plan.peak_bytes)} on {where}, which has {_gib(devices.memory_bytes)} free; "
            "fewer calibration tokens or, on one host, fewer shards need less"
        )
    return plan


def _peak_bytes(
    spec: JobSpec,
    method: Method,
    family: Family,
    tensor_shapes: dict[str, tuple[int, ...]],
    linears: dict[str, tuple[int, int]],
    outer_shapes: list[tuple[int, ...]],
    devices: Devices,
    num_shards: int,
) -> int:
    """Estimate from above: float32 throughout, the largest moment of each phase held at once."""
    hidden = max(shape[-1] for shape in tensor_shapes.values() if len(shape) == 1)
    tokens = spec.calibration.num_sequences * spec.calibration.sequence_length
    activations = 4 * tokens * hidden * 2
    block = 4 * sum(prod(shape) for shape in tensor_shapes.values())
    inputs = [linears[tap.linears[0]][1] for tap in family.taps]
    open_taps = inputs if method.propagation == "block" else [max(inputs)]
    grams = 4 * sum(2 * width**2 for width in open_taps) + 4 * 3 * max(inputs) ** 2
    solve = 4 * 6 * max(prod(shape) for shape in linears.values())
    forward = 4 * spec.calibration.sequence_length * 8 * max(max(shape) for shape in linears.values())
    outer = 4 * sum(prod(shape) for shape in outer_shapes)
    per_shard = 2 * block + grams + forward + outer
    if devices.kind == "cpu":
        return num_shards * (BASE_BYTES + per_shard) + activations + solve
    return BASE_BYTES + per_shard + -(-activations // num_shards) + solve


def available_host_bytes() -> int:
    """Memory of this host that is free or can be freed."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as meminfo:
            lines = dict(line.split(":", 1) for line in meminfo)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass  # not Linux: free pages are the best there is
    return free


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
