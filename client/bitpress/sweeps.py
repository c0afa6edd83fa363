"""Sweeps: one model and one text, several methods, compared side by side.

The members of a sweep are ordinary jobs, with the bytes that each would have alone. What they share is
work: one reading of every block, one dense model to compare with, and, where the strategy is independent,
the Hessians and factors.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag, field_validator

from bitpress.jobs import JobSpec, SpecBase, validated
from bitpress.methods import MethodConfig, PTQ161Config

MAX_MEMBERS = 64
SWEEP_ID = "sweep_"  # what the id of a sweep begins with, and that of no job


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
        shared = {name: getattr(self, name) for name in SweepSpec.model_fields if name != "method"}
        return tuple(JobSpec.model_validate({**shared, "method": method}) for method in self.method)


def is_sweep(data: object) -> bool:
    """Whether parsed JSON, or a spec, asks for several methods."""
    method = data.get("method") if isinstance(data, Mapping) else getattr(data, "method", None)
    return isinstance(method, list | tuple)


def kind_of(data: Any) -> str:
    """What a submission is, by its tag."""
    return "sweep" if is_sweep(data) else "job"


Submission = Annotated[Annotated[JobSpec, Tag("job")] | Annotated[SweepSpec, Tag("sweep")], Discriminator(kind_of)]
"""What may be submitted; where it is at fault, pydantic puts the tag before the field."""


def parse_submission(data: object) -> JobSpec | SweepSpec:
    """Read a job spec, or a sweep when its `method` is a list, from parsed JSON.

    Raises InvalidJob whose `details` hold one (JSON pointer, message) for each bad field.
    """
    return validated(SweepSpec, data) if is_sweep(data) else validated(JobSpec, data)
