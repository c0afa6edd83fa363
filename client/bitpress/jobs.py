"""What a job is: the spec a user writes, the states it passes, the events it sends.

Every class is frozen and refuses unknown fields; `parse_spec` turns pydantic's complaints
into one InvalidJob with a path and a message for each field.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from bitpress.errors import InvalidJob
from bitpress.exports import Export, check_exports
from bitpress.methods import MethodConfig, check_independent
from bitpress.tasks import Task
from bitpress.texts import NO_NUL, Dataset, SequenceLength


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSource(_Model):
    """Where the checkpoint is: a directory, `s3://bucket/prefix`, or a hub id with its commit as `revision`."""

    uri: str = Field(min_length=1, max_length=4096, pattern=NO_NUL)
    revision: str | None = Field(None, max_length=200)


class Calibration(_Model):
    """The text a method looks at: `num_sequences` windows of `sequence_length` tokens drawn with `seed`."""

    dataset: Dataset
    num_sequences: int = Field(128, ge=1, le=65536)
    sequence_length: SequenceLength = 2048
    seed: int = Field(0, ge=0, lt=2**32)


class Evaluation(_Model):
    """Held-out texts for perplexity, cut into windows of `sequence_length` tokens; zero-shot tasks for accuracy."""

    datasets: tuple[Dataset, ...] = ()
    sequence_length: SequenceLength = 2048
    max_sequences: int | None = Field(None, ge=1, description="windows used of each dataset; null: all")

    tasks: tuple[Task, ...] = Field((), description="zero-shot tasks of lm-eval")
    task_files: str | None = Field(
        None, min_length=1, max_length=4096, pattern=NO_NUL,
        description="directory with `<task>.jsonl` or `<task>_*.jsonl` of every task; null: from the hub",
    )  # fmt: skip
    task_examples: int | None = Field(None, ge=2, description="examples used of each task, the first ones; null: all")

    @field_validator("datasets", "tasks")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise ValueError(f"{twice} is named twice")
        return values


class Gate(_Model):
    """What a result must reach on every dataset, or task; a job that misses it fails and keeps its artifact."""

    perplexity_increase_percent: float | None = Field(None, description="most by which perplexity may rise")
    kl_max: float | None = Field(None, ge=0, description="largest KL divergence to the dense model, in nats")
    agreement_min: float | None = Field(None, ge=0, le=1, description="least share of equal most likely tokens")
    accuracy_drop_max: float | None = Field(
        None, ge=-1, le=1, description="most by which a task's accuracy may fall below the dense model's, as a share"
    )


Name = Annotated[str, Field(min_length=1, max_length=200, description="what people call the job")]
LabelKey = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^=]*$")]
Labels = Annotated[dict[LabelKey, Annotated[str, Field(max_length=200)]], Field(max_length=32)]
Priority = Annotated[int, Field(ge=-100, le=100, description="higher ones are run first")]


Strategy = Annotated[
    Literal["exact", "independent"],
    Field(
        description="exact: all devices work on one block, given what the blocks before it became; independent: blocks "
        "are spread over the devices and calibrated at once, as they lie in the original model, for slow links"
    ),
]


Methods = TypeVar("Methods")


class SpecBase(_Model, Generic[Methods]):
    """What specs have in common, whether they ask for one method or for several."""

    model: ModelSource
    method: Methods
    calibration: Calibration
    evaluation: Evaluation = Evaluation()
    gate: Gate | None = Field(None, description="what the result must reach; null: nothing")
    exports: tuple[Export, ...] = Field((), description="what else the result is written as, under exports/")
    strategy: Strategy = "exact"
    devices: int | None = Field(None, ge=1, le=4096, description="number of shards; null: all devices there are")
    name: Name | None = None
    labels: Labels = Field(default_factory=dict)

    @field_validator("gate")
    @classmethod
    def _gate(cls, gate: Gate | None, info: ValidationInfo) -> Gate | None:
        if gate is None or "evaluation" not in info.data:  # absent when it is itself at fault
            return gate
        limits = [name for name, limit in gate if limit is not None]
        if not limits:
            raise ValueError(f"a gate without a limit; expected one of {', '.join(Gate.model_fields)}")
        of_tasks = {"accuracy_drop_max"} & set(limits)
        for missing, asked in (("datasets", set(limits) - of_tasks), ("tasks", of_tasks)):
            if asked and not getattr(info.data["evaluation"], missing):
                raise ValueError(f"{', '.join(sorted(asked))}: not evaluated, evaluation.{missing} is empty")
        return gate

    @field_validator("exports")
    @classmethod
    def _exports(cls, values: tuple[Export, ...], info: ValidationInfo) -> tuple[Export, ...]:
        for method in _methods(info):
            check_exports(values, method)
        return values

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, value: Strategy, info: ValidationInfo) -> Strategy:
        for method in _methods(info) if value == "independent" else ():
            check_independent(method)
        return value


def _methods(info: ValidationInfo) -> tuple[MethodConfig, ...]:
    """A spec's methods; none when they are themselves at fault."""
    found = info.data.get("method", ())
    return found if isinstance(found, tuple) else (found,)


class JobSpec(SpecBase[MethodConfig]):
    """What is to be done; stored with the artifact. Where it runs is no part of it, but for `devices`."""


def parse_spec(data: object) -> JobSpec:
    """Read a JobSpec from parsed JSON.

    Raises InvalidJob whose `details` hold one (JSON pointer, message) for each bad field.
    """
    return validated(JobSpec, data)


Spec = TypeVar("Spec", bound=BaseModel)


def validated(kind: type[Spec], data: object, what: str = "the job spec") -> Spec:
    """Read what is called `what` from parsed JSON. Raises InvalidJob as `parse_spec` does."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        details = [(pointer(e["loc"]), e["msg"]) for e in error.errors(include_url=False, include_context=False)]
        summary = "; ".join(f"{path or '/'}: {text}" for path, text in details)
        raise InvalidJob(f"{what} is not valid: {summary}", details) from None


def pointer(location: tuple[int | str, ...]) -> str:
    """JSON pointer (RFC 6901) of a pydantic error location in a spec."""
    if location[:1] == ("method",):
        # Behind a method pydantic names its kind, which is no step of the document.
        kind = 2 if len(location) > 1 and isinstance(location[1], int) else 1
        location = location[:kind] + location[kind + 1 :]
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


class JobState(StrEnum):
    """`pausing` and `cancelling` are running jobs whose worker still has to learn what was asked for."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Nothing more happens by itself; a retry queues a job that failed or was cancelled again."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


_ENDS = frozenset({JobState.SUCCEEDED, JobState.FAILED})
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED}),
    JobState.RUNNING: _ENDS | {JobState.QUEUED, JobState.PAUSING, JobState.CANCELLING},
    JobState.PAUSING: _ENDS | {JobState.RUNNING, JobState.PAUSED, JobState.CANCELLING},
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLING: _ENDS | {JobState.CANCELLED},
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}

Phase = Literal["preparing", "restoring", "calibrating", "evaluating", "publishing"]


class Progress(_Model):
    """How far a running job is. `fraction` counts the whole job, 0 to 1."""

    phase: Phase = "preparing"
    blocks_done: int = 0
    blocks_total: int = 0
    linear: str | None = None
    fraction: float = Field(0.0, ge=0, le=1)
    eta_seconds: float | None = None


class Failure(_Model):
    """Why a job failed: the error's stable code, its message and on which attempt."""

    code: str
    message: str
    retryable: bool
    attempt: int


class Job(_Model):
    """A job as the API shows it. `version` grows with every change; times are UTC.

    entered_at: when it last came into each of the states it has been in. sweep: the sweep that it is a member of.
    """

    id: str
    tenant: str
    state: JobState
    status_detail: str | None = None
    spec: JobSpec
    priority: int = 0
    progress: Progress = Progress()
    attempt: int = 0
    failures: int = 0
    cancel_requested: bool = False
    error: Failure | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    entered_at: dict[JobState, datetime] = Field(default_factory=dict)
    sweep: str | None = None
    version: int = 0


class JobEdit(_Model):
    """What may be changed of a job; a member that is not given stays as it is."""

    name: Name | None = Field(None, description="null takes the name away")
    labels: Labels = Field(default_factory=dict, description="all labels, in the place of those before")
    priority: Priority = Field(0, description="only of a job that is queued or paused")

    def apply(self, spec: JobSpec) -> JobSpec:
        """The spec with the name and the labels that were given."""
        return spec.model_copy(update=self.model_dump(include=self.model_fields_set & {"name", "labels"}))


class JobFilter(_Model):
    """Which jobs to list: those of which all that is given is true."""

    id: str | None = Field(None, max_length=64, pattern="^[A-Za-z0-9_]*$", description="what the id begins with")
    state: JobState | None = None
    method: str | None = Field(None, max_length=100, description="kind of the method")
    model: str | None = Field(None, max_length=4096, description="the model's uri")
    name: str | None = Field(None, max_length=200, description="part of the name, in upper or lower case")
    label: tuple[Annotated[str, Field(max_length=301, pattern="^[^=]+=")], ...] = Field(
        (), max_length=32, description="`key=value`, once for each label"
    )
    created_after: AwareDatetime | None = None
    sweep: str | None = Field(None, max_length=100, description="id of a sweep: its members")


class JobPage(_Model):
    """One page of a list; `next_cursor` is opaque and null on the last page."""

    data: tuple[Job, ...]
    next_cursor: str | None = None


class _Event(_Model):
    id: str
    at: datetime


class StateEvent(_Event):
    type: Literal["state"] = "state"
    state: JobState
    attempt: int
    error: Failure | None = None


class ProgressEvent(_Event):
    type: Literal["progress"] = "progress"
    progress: Progress


class BlockEvent(_Event):
    """A block was published: its index, the sha256 of its file, its size and mean relative error."""

    type: Literal["block"] = "block"
    index: int
    sha256: str
    bytes: int
    relative_error: float


class LogEvent(_Event):
    type: Literal["log"] = "log"
    message: str


Event = Annotated[StateEvent | ProgressEvent | BlockEvent | LogEvent, Field(discriminator="type")]


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
