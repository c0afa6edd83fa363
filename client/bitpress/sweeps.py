"""Sweeps: one model and one text, several methods, compared side by side.

The members of a sweep are ordinary jobs, with the bytes that each would have alone. What they share is
work: one reading of every block, one dense model to compare with, and, where the strategy is independent,
the Hessians and factors.
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator

from bitpress.artifacts import Report
from bitpress.errors import BitpressError
from bitpress.jobs import JobSpec, SpecBase, validated
from bitpress.methods import MethodConfig, PTQ161Config

MAX_MEMBERS = 64


class SweepSpec(SpecBase[tuple[MethodConfig, ...]]):
    """A job spec whose `method` is a list: one job for each."""

    @field_validator("method")
    @classmethod
    def _members(cls, methods: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        if not 2 <= len(methods) <= MAX_MEMBERS:
            raise ValueError(f"expected 2 to {MAX_MEMBERS} methods, found {len(methods)}")
        for number, method in enumerate(methods):
            if method in methods[:number]:
                raise ValueError(f"methods {methods.index(method)} and {number} are the same")
            if isinstance(method, PTQ161Config):
                raise ValueError(f"method {number}: ptq161 trains whole blocks, step by step; submit it as a job")
        return methods

    def names(self) -> tuple[str, ...]:
        """Short names of the members, in the methods' order."""
        return tuple(f"{number:02}-{method.kind}" for number, method in enumerate(self.method))

    def specs(self) -> tuple[JobSpec, ...]:
        """The members, in the methods' order."""
        shared = self.model_dump(exclude={"method"})
        return tuple(JobSpec.model_validate(shared | {"method": method}) for method in self.method)


def parse_submission(data: object) -> JobSpec | SweepSpec:
    """Read a job spec, or a sweep when its `method` is a list, from parsed JSON.

    Raises InvalidJob whose `details` hold one (JSON pointer, message) for each bad field.
    """
    is_sweep = isinstance(data, Mapping) and isinstance(data.get("method"), list)
    return validated(SweepSpec, data) if is_sweep else validated(JobSpec, data)


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
