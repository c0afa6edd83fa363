"""What a job will need and cost, before it runs: the plan, its memory, operations, bytes and times in one report."""

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal

from bitpress.jobs import Evaluation, JobSpec
from bitpress.methods import SEPTQConfig, SpQRConfig
from bitpress.plans import PhaseCost, PlannedBlocks, PlannedDevices, PlanReport, Rates
from bitpress_workers.exports import check_shapes, create_target
from bitpress_workers.methods import create
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.costs import (
    Cost,
    Phase,
    block_cost,
    factor_share,
    head_flops,
    restoring_flops,
    row_share,
)
from bitpress_workers.pipeline.estimate import DOCUMENT_TOKENS, Estimate
from bitpress_workers.pipeline.placement import micro_batch_size
from bitpress_workers.pipeline.plan import Devices, Plan, make_plan
from bitpress_workers.pipeline.sizes import BlockSizes, ModelSizes, model_sizes
from bitpress_workers.pipeline.storage import ASSUMED_OUTLIERS, block_bytes, outer_bytes, stored_bits
from bitpress_workers.pipeline.traffic import block_traffic

BYTES_OF_A_TOKEN = 4  # of English text, for most tokenizers of these families
TEXT_BYTES = {"wikitext2": 1_290_590, "ptb": 399_782, "ptb-new": 449_945}  # of the evaluated parts
C4_WINDOWS = 256  # what is evaluated of it; see `calibration`
UNKNOWN_WINDOWS = 256  # of a text that is not on this host
DOCUMENTS_PER_STEP = 2  # of the restorative stage; see `restoration`

RatesFrom = Literal["probe", "statement", "nowhere"]


def outlook(
    spec: JobSpec, devices: Devices, rates: Rates | None, rates_from: RatesFrom, num_members: int = 1
) -> PlanReport:
    """Plan a job from its checkpoint's config and headers; num_members: of the sweep that it belongs to.

    Raises what the job would end with: CheckpointError, UnsupportedModel, InvalidJob, OutOfMemory.
    """
    checkpoint = Checkpoint.open(spec.model.uri, spec.model.revision)
    outline = Outline(checkpoint)
    check_shapes([create_target(name, spec.method) for name in spec.exports], outline, checkpoint)
    sizes = model_sizes(outline, checkpoint)
    num_windows, assumptions = evaluated_windows(spec.evaluation)
    plan = make_plan(spec, create(spec.method), sizes, num_windows, devices, num_members)
    cost = job_cost(spec, sizes, num_windows, devices.kind, plan.num_shards)
    phases = _phases(spec, plan, num_windows, cost, rates, devices.kind) | _exchange(
        spec, plan, sizes, rates, devices.kind
    )
    seconds = [phase.seconds for phase in phases.values() if phase.seconds is not None]
    files = [block_bytes(spec.method, block) for block in sizes.blocks]
    stored = sum(block.stored_bytes for block in sizes.blocks)
    outer = sum(tensor.bytes for tensor in sizes.outer.values())
    return PlanReport(
        spec=spec,
        devices=PlannedDevices(
            kind=devices.kind,
            count=devices.count,
            memory_bytes=devices.memory_bytes,
            rates=rates,
            rates_from=rates_from,
        ),
        shards=plan.num_shards,
        blocks=_blocks(spec, sizes, num_windows, devices.kind, plan.num_shards, num_members),
        phases=phases,
        flops=sum(phase.flops for phase in phases.values()),
        seconds=sum(seconds) if seconds else None,
        bytes_read=plan.num_shards * outer + _blocks_read(spec, plan.num_shards, num_windows, stored, sum(files)),
        bytes_written=_passes(spec) * sum(files) + outer_bytes(sizes),
        peak_device_bytes=plan.memory.device_bytes,
        peak_host_bytes=plan.memory.host_bytes,
        peak_moment=plan.memory.moment,
        activations="host" if plan.offloaded or devices.kind == "cpu" else "device",
        checkpoint_bytes=stored + outer,
        artifact_bytes=sum(files) + outer_bytes(sizes),
        bits_per_weight=_bits_per_weight(spec, sizes.blocks),
        assumptions=(*assumptions, *_assumptions(spec, plan, rates)),
    )


def _passes(spec: JobSpec) -> int:
    """How often a job compresses the whole model."""
    return 2 if getattr(spec.method, "preprocessing", None) else 1


def _blocks_read(spec: JobSpec, num_shards: int, num_windows: int, stored: int, written: int) -> int:
    """Bytes of blocks that shards read: dense ones, `stored` in all, and compressed ones, `written` in all."""
    # One shard takes the prompt through that the artifact is checked with, and all of them texts.
    evaluated = (num_shards if num_windows else 1) * (stored + written)
    if spec.strategy == "independent":  # every block by its own shard, all but the last range's twice
        return evaluated + 2 * stored - stored // num_shards
    return evaluated + num_shards * _passes(spec) * stored


def job_cost(spec: JobSpec, sizes: ModelSizes, num_windows: int, kind: str, num_shards: int) -> Cost:
    """Of all blocks, and of what goes through the whole model."""
    cost = Cost()
    for block, indices in _shapes(sizes):
        cost.add(block_cost(spec, sizes, block, num_windows, kind, num_shards), len(indices))
    if restoring := restoring_flops(spec, sizes, DOCUMENT_TOKENS, DOCUMENTS_PER_STEP):
        cost.add(cost)  # the first pass
        cost.products["restoring"] = restoring
    if num_windows:
        cost.products["evaluation"] += head_flops(spec, sizes, num_windows)
    return cost


def evaluated_windows(evaluation: Evaluation) -> tuple[int, list[str]]:
    """How many windows will be evaluated, as far as that can be said without reading a text, and what was assumed."""
    total, assumptions = 0, []
    for name in evaluation.datasets:
        windows = min(_windows(name, evaluation.sequence_length), evaluation.max_sequences or UNKNOWN_WINDOWS)
        total += windows
        assumptions.append(f"{name}: {windows} windows of {evaluation.sequence_length} tokens; the text is not read")
    return total, assumptions


def _windows(name: str, sequence_length: int) -> int:
    if name in ("c4", "c4-new"):
        return C4_WINDOWS
    path = Path(name)
    size = TEXT_BYTES.get(name) or (path.stat().st_size if path.is_file() else None)
    return UNKNOWN_WINDOWS if size is None else max(1, size // BYTES_OF_A_TOKEN // sequence_length)


def _shapes(sizes: ModelSizes) -> list[tuple[BlockSizes, list[int]]]:
    """The blocks' different shapes, each with the blocks that have it."""
    found: dict[object, tuple[BlockSizes, list[int]]] = {}
    for index, block in enumerate(sizes.blocks):
        found.setdefault(block.shape, (block, []))[1].append(index)
    return list(found.values())


def _blocks(
    spec: JobSpec, sizes: ModelSizes, num_windows: int, kind: str, num_shards: int, num_members: int
) -> tuple[PlannedBlocks, ...]:
    estimate = Estimate(spec, create(spec.method), sizes, num_windows, kind, num_shards, num_members=num_members)
    moments = list(estimate.moments())
    planned = []
    for block, indices in _shapes(sizes):
        cost = block_cost(spec, sizes, block, num_windows, kind, num_shards)
        planned.append(
            PlannedBlocks(
                blocks=tuple(indices),
                linears=dict(block.linears),
                flops=dict(cost.products + cost.elementwise),
                checkpoint_bytes=block.stored_bytes,
                artifact_bytes=block_bytes(spec.method, block),
                bits_per_weight=_bits_per_weight(spec, [block]),
                peak_bytes=max(moment.bytes for moment in moments if moment.block == indices[0]),
            )
        )
    return tuple(planned)


def _bits_per_weight(spec: JobSpec, blocks: Sequence[BlockSizes]) -> float:
    shapes = Counter(shape for block in blocks for shape in block.linears.values())
    bits = sum(count * stored_bits(spec.method, shape) for shape, count in shapes.items())
    return bits / sum(count * prod(shape) for shape, count in shapes.items())


def _phases(
    spec: JobSpec, plan: Plan, num_windows: int, cost: Cost, rates: Rates | None, kind: str
) -> dict[str, PhaseCost]:
    """Operations and seconds of each phase; a phase lasts as long as the shard that has most of it."""
    windows = -(-num_windows // micro_batch_size(spec.evaluation.sequence_length))
    in_slices = _longest(len(plan.slices), plan.num_shards)
    in_tiles = row_share(plan.blocks[-1], plan.row_tile, plan.num_shards)
    longest: dict[Phase, float] = {
        "forward": in_slices,
        "hessian": in_slices,
        "factor": factor_share(spec.method, plan.blocks[-1], plan.num_shards),
        "solve": in_tiles,
        "evidence": in_tiles,
        "evaluation": _longest(windows, plan.num_shards),
    }  # training steps come one after the other
    if spec.strategy == "independent":
        blocks = _longest(len(plan.blocks), plan.num_shards)
        # Ranges begin one after the other, so that all blocks are passed before the last one is.
        longest |= {"forward": 1 / (2 - 1 / plan.num_shards)}
        longest |= dict.fromkeys(("hessian", "factor", "solve", "evidence"), blocks)
    half = rates and kind != "cpu" and not isinstance(create(spec.method), BlockMethod)
    phases: dict[str, PhaseCost] = {}
    for phase in cost.products | cost.elementwise:
        products, elementwise = cost.products[phase], cost.elementwise[phase]
        seconds = None
        if rates:
            in_half = half and phase in ("forward", "hessian", "evaluation")
            gemm = (rates.half_gemm_gflops if in_half else None) or rates.gemm_gflops
            seconds = longest.get(phase, 1.0) * (products / gemm + elementwise / rates.loop_gflops) / 1e9
        phases[phase] = PhaseCost(flops=products + elementwise, seconds=seconds)
    return phases


def _exchange(spec: JobSpec, plan: Plan, sizes: ModelSizes, rates: Rates | None, kind: str) -> dict[str, PhaseCost]:
    """What passes between shards while blocks are solved; empty for one shard."""
    if spec.strategy == "independent":
        total = through_one_link = _handed_over(spec, plan, sizes, kind)
    else:
        total, through_one_link = _gathered(spec, plan, sizes, kind)
    if not total:
        return {}
    seconds = 8 * through_one_link / rates.link_gigabits / 1e9 if rates and rates.link_gigabits else None
    return {"exchange": PhaseCost(flops=0, seconds=seconds, bytes=total)}


def _handed_over(spec: JobSpec, plan: Plan, sizes: ModelSizes, kind: str) -> int:
    """All hidden states, once over each border of two ranges, one border after the other."""
    tokens = spec.calibration.num_sequences * spec.calibration.sequence_length
    width = Estimate(spec, create(spec.method), sizes, 0, kind, plan.num_shards).width
    return (plan.num_shards - 1) * width * tokens * sizes.hidden_size


def _gathered(spec: JobSpec, plan: Plan, sizes: ModelSizes, kind: str) -> tuple[int, int]:
    """Grams, factors and rows of all taps: in all, and through the link that most passes through."""
    total, through_one_link = 0, 0
    passes = 2 if getattr(spec.method, "preprocessing", None) else 1
    for block, indices in _shapes(sizes):
        for tap in block_traffic(spec.method, block, len(plan.slices), plan.row_tile, plan.num_shards, kind):
            total += passes * len(indices) * tap.total(plan.num_shards)
            through_one_link += passes * len(indices) * tap.through_one_link
    return total, through_one_link


def _longest(num_pieces: int, num_shards: int) -> float:
    """Share of the pieces that the shard with most of them has."""
    return -(-num_pieces // num_shards) / max(num_pieces, 1)


def _assumptions(spec: JobSpec, plan: Plan, rates: Rates | None) -> list[str]:
    found = []
    if isinstance(spec.method, SpQRConfig) and spec.method.outlier_threshold is not None:
        found.append(f"{ASSUMED_OUTLIERS:.0%} of the weights are outliers; the threshold and the data decide")
    if isinstance(spec.method, SEPTQConfig):
        found.append("no two weights are equally important; those equal to the last one kept are kept too")
    if rates is None:
        found.append("no times: no rates were stated for these devices, and there is none here to measure")
    else:
        found.append("times leave out reading and writing")
    if rates and plan.num_shards > 1 and rates.link_gigabits is None:
        found.append("times leave out what passes between shards: rates.link_gigabits is not stated")
    if spec.exports:
        found.append("exports are not counted")
    if spec.evaluation.tasks:
        found.append("zero-shot tasks are not counted; what they ask is known when the job has begun")
    return found
