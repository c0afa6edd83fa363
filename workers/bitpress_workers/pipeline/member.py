"""The jobs of one run: a single one, or the members of a sweep, which share a fleet and end each for itself."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from bitpress.artifacts import Report
from bitpress.errors import BitpressError, Cancelled, OutOfMemory, WorkerLost
from bitpress.jobs import JobSpec
from bitpress_service.jobstore import BlockRecord, Fenced
from bitpress_workers.exports import Target
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.pipeline.plan import Plan
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Publisher, Recorder, Released, Sidecar
from bitpress_workers.pipeline.quality import Quality


class MembersEnded(Exception):
    """No member is left: there is nothing more to do."""


class FleetSpoiled(Exception):
    """A member failed on the shards, which may be in the middle of something: the others need a new fleet."""


@dataclass
class Member:
    """One job of a run. number: its place in the run. key_of: where its files go.

    What it has come to when the run is over is its `report` or its `error`. logits: of the compressed model on the
    prompt that the artifact is checked with, [tokens, vocabulary]. weights_sha256: of the checkpoint, once all of
    it was read.
    """

    number: int
    spec: JobSpec
    key_of: Callable[[str], str]
    recorder: Recorder
    report: Report | None = None
    error: BitpressError | None = None
    method: Method | BlockMethod = field(init=False)
    plan: Plan = field(init=False)
    meter: ProgressMeter = field(init=False)
    publisher: Publisher = field(init=False)
    targets: Sequence[Target] = field(init=False)
    records: Sequence[tuple[BlockRecord, Sidecar]] = field(init=False)
    quality: Quality | None = None
    logits: Tensor | None = None
    weights_sha256: str = ""

    @property
    def damping(self) -> float | None:
        """What the spec asks for; None when the method has none."""
        return getattr(self.spec.method, "damping", None)

    def end(self, outcome: Report | BitpressError) -> None:
        """The job is done, with a report, which may fall short of what was asked for, or with an error."""
        if isinstance(outcome, Report):
            self.report = outcome
        else:
            self.error = outcome
        self.recorder.ended(outcome.problem() if isinstance(outcome, Report) else outcome)

    @property
    def has_ended(self) -> bool:
        return self.report is not None or self.error is not None

    def result(self) -> Report:
        """Return the report. Raises the error that the job ended with."""
        if self.report is None:
            raise self.error or AssertionError("the run is not over")
        return self.report


@dataclass(frozen=True)
class Members:
    """All jobs of a run. Iterating yields those that have not ended."""

    all: Sequence[Member]

    def __iter__(self) -> Iterator[Member]:
        return (member for member in self.all if not member.has_ended)

    @property
    def first(self) -> Member:
        """What all have in common can be read off any of them."""
        return self.all[0]

    def unevaluated(self) -> list[Member]:
        """Those whose evaluation is neither done nor has failed."""
        return [member for member in self if member.quality is None]

    @contextmanager
    def part(self, member: Member, *, on_shards: bool) -> Iterator[None]:
        """What is done for one member alone, with calls of shards or without: its errors end this member.

        Raises FleetSpoiled when such a call has failed, MembersEnded when this was the last member; and what
        concerns the fleet, as it is.
        """
        try:
            yield
        except (WorkerLost, OutOfMemory):
            raise
        except BitpressError as error:
            member.end(error)
            if not any(self):
                raise MembersEnded from error
            # These come from the recorder, between two calls.
            if on_shards and not isinstance(error, Cancelled | Released | Fenced):
                raise FleetSpoiled from error

    def blocks(self) -> set[tuple[int, int]]:
        """Blocks that are published, with their members."""
        return {(member.number, index) for member in self for index in member.recorder.blocks()}

    def log(self, message: str) -> None:
        for member in self:
            with self.part(member, on_shards=False):
                member.recorder.log(message)

    def waiting(self, reason: str) -> None:
        for member in self:
            with self.part(member, on_shards=False):
                member.recorder.waiting(reason)
