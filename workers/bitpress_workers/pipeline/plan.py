"""What a job will do and need, from its spec, the config and the tensors' shapes alone; nothing is loaded."""

import os
import resource
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, Self

from bitpress.errors import InvalidJob, OutOfMemory
from bitpress.jobs import JobSpec
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Family
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.placement import NUM_SLICES, cut, micro_batch_size

ROW_TILE = {"cpu": 64, "cuda": 1024}  # rows of one GEMM: small enough to share out, large enough to be fast
DOCUMENT_TOKENS = 2048  # of the longest document that PTQ1.61's adapter is trained on (published)
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


@dataclass(frozen=True)
class ModelSizes:
    """Shapes of a model's parts.

    linears: [out, in] of each compressed linear of a block, by relative name. block_weights,
    outer_weights: number of weights of the largest block, and outside the blocks. linear_bytes: of
    all compressed linears in the checkpoint. num_heads: of attention.
    """

    num_blocks: int
    hidden_size: int
    linears: dict[str, tuple[int, int]]
    block_weights: int
    outer_weights: int
    linear_bytes: int
    vocab_size: int
    num_heads: int


def model_sizes(outline: Outline, checkpoint: Checkpoint) -> ModelSizes:
    """Read a model's sizes off the checkpoint's headers."""
    info = checkpoint.tensors
    blocks = [outline.block_tensor_names(index) for index in range(outline.num_blocks)]
    names = [name for tap in outline.family.taps for name in tap.linears]
    full = [[f"{outline.block_name(index)}.{name}.weight" for name in names] for index in range(len(blocks))]
    linears = {name: _matrix(info[blocks[0][path]].shape) for name, path in zip(names, full[0], strict=True)}
    return ModelSizes(
        num_blocks=len(blocks),
        hidden_size=linears[names[0]][1],
        linears=linears,
        block_weights=max(sum(prod(info[theirs].shape) for theirs in block.values()) for block in blocks),
        outer_weights=sum(prod(info[theirs].shape) for theirs in outline.outer_tensor_names().values()),
        vocab_size=int(checkpoint.config.vocab_size),
        num_heads=int(getattr(checkpoint.config, "num_attention_heads", 1)),
        linear_bytes=sum(info[blocks[i][path]].bytes for i, paths in enumerate(full) for path in paths),
    )


def make_plan(
    spec: JobSpec, method: Method | BlockMethod, family: Family, sizes: ModelSizes, num_windows: int, devices: Devices
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
        num_blocks=sizes.num_blocks,
        linear_shapes=sizes.linears,
        peak_bytes=_peak_bytes(spec, method, family, sizes, num_windows, devices.kind, num_shards),
    )
    if plan.peak_bytes > devices.memory_bytes:
        where = "this host" if devices.kind == "cpu" else "a device"
        raise OutOfMemory(
            f"the job needs about {_gib(plan.peak_bytes)} on {where}, which has {_gib(devices.memory_bytes)}; "
            "fewer calibration tokens or, on one host, fewer shards need less"
        )
    return plan


def _peak_bytes(
    spec: JobSpec,
    method: Method | BlockMethod,
    family: Family,
    sizes: ModelSizes,
    num_windows: int,
    kind: str,
    num_shards: int,
) -> int:
    """Estimate from above: float32 throughout, the largest moment of each phase held at once."""
    calibration, evaluation = spec.calibration, spec.evaluation
    calibrated = calibration.num_sequences * calibration.sequence_length
    evaluated = 2 * num_windows * evaluation.sequence_length  # dense and compressed
    activations = 4 * 2 * max(calibrated, evaluated) * sizes.hidden_size
    if isinstance(method, BlockMethod):
        activations *= 2  # two streams, and the dense block's outputs for one of them
        compressing, solve = _training_bytes(sizes.block_weights, sizes, calibration.sequence_length), 0
    else:
        compressing, solve = _solving_bytes(method, family, sizes)
    widest = max(max(shape) for shape in sizes.linears.values())
    forward = 4 * 8 * micro_batch_size(calibration.sequence_length) * calibration.sequence_length * widest
    logits = 4 * 3 * evaluation.sequence_length * sizes.vocab_size if num_windows else 0
    per_shard = 4 * (2 * sizes.block_weights + sizes.outer_weights) + compressing + max(forward, logits)
    preprocessing = getattr(spec.method, "preprocessing", None)
    restoring = _restoring_bytes(sizes, preprocessing.rank) if preprocessing else 0
    if kind == "cpu":
        return num_shards * (BASE_BYTES + per_shard) + max(activations + solve, restoring)
    return BASE_BYTES + max(per_shard + activations // num_shards + solve, restoring)


def _solving_bytes(method: Method, family: Family, sizes: ModelSizes) -> tuple[int, int]:
    """What open Hessians take on every shard, and the weights of a tap being solved on all of them."""
    inputs = [sizes.linears[tap.linears[0]][1] for tap in family.taps]
    open_taps = inputs if method.propagation == "block" else [max(inputs)]
    grams = 4 * sum(2 * width**2 for width in open_taps) + 4 * 3 * max(inputs) ** 2
    return grams, 4 * 6 * max(sum(prod(sizes.linears[name]) for name in tap.linears) for tap in family.taps)


def _training_bytes(num_weights: int, sizes: ModelSizes, sequence_length: int) -> int:
    """What a training step on one sequence takes: ten numbers a weight, twenty a row and token, four scores a head."""
    widest = max(max(shape) for shape in sizes.linears.values())
    tokens = 20 * sequence_length * widest + 4 * sizes.num_heads * sequence_length**2
    return 4 * (10 * num_weights + tokens)


def _restoring_bytes(sizes: ModelSizes, rank: int) -> int:
    """What the whole model takes with an adapter in training: two copies of the weights while it is written."""
    whole = 2 * sizes.num_blocks * sizes.block_weights + sizes.outer_weights
    adapters = 4 * sizes.num_blocks * rank * sum(sum(shape) for shape in sizes.linears.values())
    tokens = DOCUMENT_TOKENS * (sizes.num_blocks * sizes.hidden_size + 4 * sizes.vocab_size)
    return 4 * (whole + adapters + tokens) + _training_bytes(0, sizes, DOCUMENT_TOKENS)


def available_host_bytes() -> int:
    """Memory of this host that is free or can be freed."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = int(available.split()[1]) * 1024
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return free
    return min(free, int(most) - int(limit.with_name("memory.current").read_text()))


def peak_resident_bytes() -> int:
    """Most memory that this process has had resident.

    Not getrusage's: after fork and exec that starts at the parent's.
    """
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, which counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
