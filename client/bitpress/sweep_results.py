"""What the members of a sweep came to, side by side."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from bitpress.artifacts import Report
from bitpress.errors import BitpressError
from bitpress.jobs import JobSpec
from bitpress.methods import MethodConfig


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MemberResult(_Model):
    """One member of a sweep: the figures that it is compared by, the error that it ended with, or both when it is
    complete but misses its gate or could not be evaluated.

    `relative_error` is the mean over all linears, `perplexity` that of the compressed model by dataset, `kl` its
    divergence from the dense one in nats, `seconds` what was spent on this member's blocks alone.
    """

    name: str
    method: MethodConfig
    bits_per_weight: float | None = None
    perplexity: dict[str, float] = {}
    kl: dict[str, float] = {}
    relative_error: float | None = None
    seconds: float | None = None
    error: str | None = None
    message: str = ""

    @classmethod
    def of(cls, name: str, method: MethodConfig, result: Report | BitpressError) -> Self:
        """From a member's report, or from what it failed with."""
        if isinstance(result, BitpressError):
            return cls(name=name, method=method, error=result.code, message=result.message)
        problem = result.problem()
        linears = [linear for block in result.blocks for linear in block.linears]
        return cls(
            name=name,
            method=method,
            bits_per_weight=result.bits_per_weight,
            perplexity={dataset: found.compressed for dataset, found in result.perplexity.items()},
            kl={dataset: found.kl for dataset, found in result.divergence.items()},
            relative_error=sum(linear.relative_error for linear in linears) / len(linears),
            seconds=sum(linear.seconds for linear in linears),
            error=problem.code if problem else None,
            message=problem.message if problem else "",
        )


class Comparison(_Model):
    """The members of a sweep side by side, smallest first, those that failed last. dense: its perplexities."""

    version: Literal[1] = 1
    dense: dict[str, float]
    members: tuple[MemberResult, ...]

    @classmethod
    def of(cls, members: Mapping[str, tuple[JobSpec, Report | BitpressError]]) -> Self:
        """From the members' specs and what they came to, by name."""
        results = [MemberResult.of(name, spec.method, result) for name, (spec, result) in members.items()]
        reports = [result for _, result in members.values() if isinstance(result, Report)]
        dense = {name: found.dense for report in reports for name, found in report.perplexity.items()}
        inf = float("inf")
        return cls(dense=dense, members=tuple(sorted(results, key=lambda member: member.bits_per_weight or inf)))
