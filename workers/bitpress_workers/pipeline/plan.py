"""What a job will do and need, from its spec, the config and the tensors' shapes alone; nothing is loaded."""

import os
from dataclasses import dataclass
from typing import Literal, Self

from bitpress.errors import InvalidJob, OutOfMemory
from bitpress.jobs import JobSpec
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.pipeline.estimate import peak_bytes
from bitpress_workers.pipeline.memory import available_host_bytes
from bitpress_workers.pipeline.placement import NUM_SLICES, cut, micro_batch_size
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes

ROW_TILE = {"cpu": 64, "cuda": 1024}  # rows of one GEMM: small enough to share out, large enough to be fast


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
    blocks: tuple[BlockSizes, ...]
    peak_bytes: int


def make_plan(
    spec: JobSpec, method: Method | BlockMethod, sizes: ModelSizes, num_windows: int, devices: Devices
) -> Plan:
    """Plan a job; num_windows: how many are evaluated, of all datasets.

    Raises InvalidJob when more accelerators are asked for than there are, OutOfMemory when the
    estimate does not fit, with both numbers.
    """
    num_shards = spec.devices or devices.count
    if devices.kind != "cpu" and num_shards > devices.count:
        raise InvalidJob(f"the job asks for {num_shards} devices; there are {devices.count}")
    calibration, tile = spec.calibration, ROW_TILE[devices.kind]
    one_by_one = isinstance(method, BlockMethod)  # a training step sees one sequence
    plan = Plan(
        num_shards=num_shards,
        slices=cut(calibration.num_sequences, NUM_SLICES),
        micro_batch=1 if one_by_one else micro_batch_size(calibration.sequence_length),
        row_tile=tile if isinstance(method, BlockMethod) else method.row_tile(tile),
        blocks=sizes.blocks,
        peak_bytes=peak_bytes(spec, method, sizes, num_windows, devices.kind, num_shards),
    )
    if plan.peak_bytes > devices.memory_bytes:
        where = "this host" if devices.kind == "cpu" else "a device"
        raise OutOfMemory(
            f"the job needs about {_gib(plan.peak_bytes)} on {where}, which has {_gib(devices.memory_bytes)}; "
            "fewer calibration tokens or, on one host, fewer shards need less"
        )
    return plan


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
