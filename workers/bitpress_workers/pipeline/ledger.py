"""What the report's ledger says: every deviation from the plain method, in words."""

from collections.abc import Mapping

from bitpress.artifacts import LedgerEntry, LinearDeviation
from bitpress_workers.models.family import Tap
from bitpress_workers.pipeline.evidence import TapFacts

DETAILS: dict[LinearDeviation, str] = {
    "constant-groups": "{} groups of weights are all alike; they are stored as that one value",
    "too-fine-groups": "the weights of {} groups differ by less than a 16-bit scale resolves",
    "short-groups": "the group size does not divide the columns: the last group of {} rows is short",
    "short-statistics": "the rows do not divide into tiles of statistics: the last of them is short",
    "no-threshold": "{} rows do not differ from each other, so nothing tells an outlier: there are none",
}


def tap_entries(block: int, tap: Tap, facts: TapFacts, damping: float | None) -> list[LedgerEntry]:
    """Deviations of a tap's Hessian; damping: what the spec asks for, None for a method without Hessian."""
    where = f"block {block}, tap {tap.name}"
    entries = []
    if facts.damping_used != damping:
        detail = f"damping {damping} was not enough to factorize the Hessian; {facts.damping_used} was used"
        entries.append(LedgerEntry(kind="damping-raised", where=where, detail=detail))
    if tap.routed and damping is not None and facts.num_tokens < facts.num_columns:
        detail = f"{facts.num_tokens} tokens reached this expert, whose Hessian has {facts.num_columns} columns" + (
            "" if facts.num_tokens else "; its linears were solved as if no input mattered more than another"
        )
        entries.append(LedgerEntry(kind="starved-expert", where=where, detail=detail))
    if facts.num_dead:
        detail = f"{facts.num_dead} inputs were zero on every calibration token; their weights are stored as zero"
        entries.append(LedgerEntry(kind="dead-columns", where=where, detail=detail))
    return entries


def linear_entries(block: int, name: str, deviations: Mapping[LinearDeviation, int]) -> list[LedgerEntry]:
    """Deviations of one linear, with how often they happened."""
    where = f"block {block}, {name}"
    return [
        LedgerEntry(kind=kind, where=where, detail=DETAILS[kind].format(number))
        for kind, number in deviations.items()
        if number
    ]


def trained_expert_entries(block: int, tap: Tap, name: str, num_tokens: int, num_columns: int) -> list[LedgerEntry]:
    """Whether an expert that was trained saw fewer tokens than its linear has inputs."""
    if not tap.routed or num_tokens >= num_columns:
        return []
    detail = f"{num_tokens} tokens reached this expert, whose linear has {num_columns} inputs"
    if not num_tokens:
        detail += ": its scales were not trained; unless the dense model sent it some, its first channels are salient"
    return [LedgerEntry(kind="starved-expert", where=f"block {block}, {name}", detail=detail)]
