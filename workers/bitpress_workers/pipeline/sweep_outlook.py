"""What the members of a sweep will need and cost together: what they share is counted once."""

from collections.abc import Sequence

from bitpress.methods import MethodConfig
from bitpress.plans import PhaseCost, PlanReport, Rates, SweepPlanReport
from bitpress.sweeps import SweepSpec
from bitpress_workers.methods import create
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.pipeline.outlook import RatesFrom, outlook
from bitpress_workers.pipeline.plan import Devices


def sweep_outlook(sweep: SweepSpec, devices: Devices, rates: Rates | None, rates_from: RatesFrom) -> SweepPlanReport:
    """Plan a sweep. Raises as `outlook` does, for any member."""
    specs = sweep.specs()
    members = tuple(outlook(spec, devices, rates, rates_from, num_members=len(specs)) for spec in specs)
    shared = _shared(sweep)
    names = dict.fromkeys(name for member in members for name in member.phases)
    phases = {name: _together(name, members, [part.get(name, 0.0) for part in shared]) for name in names}
    seconds = [phase.seconds for phase in phases.values() if phase.seconds is not None]
    largest = max(members, key=lambda member: member.peak_device_bytes or member.peak_host_bytes)
    return SweepPlanReport(
        spec=sweep,
        members=members,
        phases=phases,
        flops=sum(phase.flops for phase in phases.values()),
        seconds=sum(seconds) if seconds else None,
        bytes_read=_bytes_read(sweep, members),
        bytes_written=sum(member.bytes_written for member in members),
        peak_device_bytes=largest.peak_device_bytes,
        peak_host_bytes=max(member.peak_host_bytes for member in members),
        peak_moment=largest.peak_moment,
        artifact_bytes=sum(member.artifact_bytes for member in members),
        assumptions=tuple(dict.fromkeys(text for member in members for text in member.assumptions)),
    )


def _shared(sweep: SweepSpec) -> list[dict[str, float]]:
    """For each member, the part of its phases that a member before it does for both.

    Evaluation: the dense model, as much as the compressed one. Independent: Grams, and factors that are made alike.
    """
    seen: set[object] = set()
    found: list[dict[str, float]] = []
    for number, method in enumerate(sweep.method):
        part = {"evaluation": 0.5} if number else {}
        if sweep.strategy == "independent":
            factoring = _factoring(method)
            part |= dict.fromkeys(("forward", "hessian", "exchange"), 1.0) if number else {}
            part |= {"factor": 1.0} if factoring in seen else {}
            seen.add(factoring)
        found.append(part)
    return found


def _factoring(config: MethodConfig) -> object:
    method = create(config)
    assert not isinstance(method, BlockMethod)  # of which a sweep has none
    return method.factoring


def _together(name: str, members: Sequence[PlanReport], shared: Sequence[float]) -> PhaseCost:
    """A phase of all members, without the part of each that is done before."""
    costs = [
        (member.phases[name], 1 - part) for member, part in zip(members, shared, strict=True) if name in member.phases
    ]
    seconds = [cost.seconds * own for cost, own in costs if cost.seconds is not None]
    return PhaseCost(
        flops=round(sum(cost.flops * own for cost, own in costs)),
        seconds=sum(seconds) if seconds else None,
        bytes=round(sum(cost.bytes * own for cost, own in costs)),
    )


def _bytes_read(sweep: SweepSpec, members: Sequence[PlanReport]) -> int:
    """The checkpoint as often as one member reads it, and every member's own blocks once they are evaluated."""
    first = members[0]
    if not sweep.evaluation.datasets:
        return first.bytes_read
    return first.bytes_read + sum(_own_blocks(member) for member in members[1:])


def _own_blocks(member: PlanReport) -> int:
    return member.shards * sum(shape.artifact_bytes * len(shape.blocks) for shape in member.blocks)
