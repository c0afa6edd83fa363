"""What a plan is: what a job will need and cost, before anything of it runs.

A plan is asked for with a job spec and, if they are not to be those of the service, the devices to plan
for. It is made from the checkpoint's config and tensor headers; no weight and no text is read.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from bitpress.errors import ERRORS, BitpressError
from bitpress.jobs import JobSpec
from bitpress.sweeps import SweepSpec, kind_of


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rates(_Model):
    """What one device does in a second, in billions of operations; a multiplication and an addition are two.

    `loop_gflops` counts what goes element by element: the column loop within a block of columns, grids
    and their search. `link_gigabits` is stated, never measured: what passes between two devices in a second.
    """

    gemm_gflops: float = Field(gt=0, description="products of float32 matrices")
    half_gemm_gflops: float | None = Field(None, gt=0, description="products of 16-bit matrices; null: as float32")
    loop_gflops: float = Field(gt=0, description="column loops and searches of grids, element by element")
    link_gigabits: float | None = Field(None, gt=0, description="of one device's link; null: exchanges take no time")


class DevicesLike(_Model):
    """Devices to plan for that need not be there, with rates from a data sheet or an earlier plan."""

    kind: Literal["cpu", "cuda"]
    count: int = Field(ge=1, le=4096)
    memory_gib: float = Field(gt=0, description="of each device; of the whole host for CPU cores")
    host_memory_gib: float | None = Field(None, gt=0, description="beside accelerators; null: no limit")
    rates: Rates | None = Field(None, description="null: no times are planned")


class PlanRequest(JobSpec):
    """A job spec, and the devices to plan for; null: those of the service."""

    devices_like: DevicesLike | None = None

    @classmethod
    def of(cls, spec: JobSpec, devices_like: DevicesLike | None = None) -> Self:
        return cls.model_validate(spec.model_dump() | {"devices_like": devices_like})

    @property
    def spec(self) -> JobSpec:
        return JobSpec.model_validate(self.model_dump(exclude={"devices_like"}))


class SweepPlanRequest(SweepSpec):
    """A sweep, and the devices to plan for, as in a PlanRequest."""

    devices_like: DevicesLike | None = None

    @classmethod
    def of(cls, spec: SweepSpec, devices_like: DevicesLike | None = None) -> Self:
        return cls.model_validate(spec.model_dump() | {"devices_like": devices_like})

    @property
    def spec(self) -> SweepSpec:
        return SweepSpec.model_validate(self.model_dump(exclude={"devices_like"}))


AnyPlanRequest = Annotated[
    Annotated[PlanRequest, Tag("job")] | Annotated[SweepPlanRequest, Tag("sweep")], Discriminator(kind_of)
]


def plan_request(spec: JobSpec | SweepSpec, devices_like: DevicesLike | None = None) -> PlanRequest | SweepPlanRequest:
    """Ask for the plan of a job, or of a sweep."""
    if isinstance(spec, SweepSpec):
        return SweepPlanRequest.of(spec, devices_like)
    return PlanRequest.of(spec, devices_like)


class PlannedDevices(_Model):
    """What was planned for; `memory_bytes` is of each device, of the whole host for CPU cores."""

    kind: Literal["cpu", "cuda"]
    count: int
    memory_bytes: int
    rates: Rates | None
    rates_from: Literal["probe", "statement", "nowhere"]


class PhaseCost(_Model):
    """Operations of one phase, and its seconds on the devices that can share it; null without rates.

    `bytes` is what all shards receive from others, of the phase `exchange` alone.
    """

    flops: int
    seconds: float | None
    bytes: int = 0


class PlannedBlocks(_Model):
    """Blocks of one shape. Each of them: operations by phase, bytes in the checkpoint and in the artifact."""

    blocks: tuple[int, ...]
    linears: dict[str, tuple[int, int]]
    flops: dict[str, int]
    checkpoint_bytes: int
    artifact_bytes: int
    bits_per_weight: float
    peak_bytes: int = Field(description="of a device while such a block is in hand; of the host for CPU cores")


class PlanReport(_Model):
    """What a job will need and cost.

    `artifact_bytes` are those of all safetensors files; configs, tokenizer and reports come on top.
    `bytes_read` and `bytes_written` are checkpoint and artifact, each time they are read or written by any
    shard. `peak_device_bytes` is that of one accelerator (0 without one), `peak_host_bytes` that of a host
    with all shards; `peak_moment` says when. `assumptions` name every figure that only the data decide.
    """

    version: Literal[1] = 1
    spec: JobSpec
    devices: PlannedDevices
    shards: int
    blocks: tuple[PlannedBlocks, ...]
    phases: dict[str, PhaseCost]
    flops: int
    seconds: float | None
    bytes_read: int
    bytes_written: int
    peak_device_bytes: int
    peak_host_bytes: int
    peak_moment: str
    activations: Literal["device", "host"] = Field(description="where they wait; device: beside everything else on it")
    checkpoint_bytes: int
    artifact_bytes: int
    bits_per_weight: float
    assumptions: tuple[str, ...]


class SweepPlanReport(_Model):
    """What the members of a sweep will need and cost together.

    Memory is the largest that any member takes while all are there; operations, bytes and times count once what
    they share. members: each as if it ran alone, but for its memory; in the order of the methods.
    """

    version: Literal[1] = 1
    spec: SweepSpec
    members: tuple[PlanReport, ...]
    phases: dict[str, PhaseCost]
    flops: int
    seconds: float | None
    bytes_read: int
    bytes_written: int
    peak_device_bytes: int
    peak_host_bytes: int
    peak_moment: str
    artifact_bytes: int
    assumptions: tuple[str, ...]


class PlanAnswer(_Model):
    """What comes back of a request: a report, or the error that the job would end with."""

    report: PlanReport | SweepPlanReport | None = None
    code: str | None = None
    message: str = ""

    @classmethod
    def refusal(cls, error: BitpressError) -> Self:
        return cls(code=error.code, message=error.message)

    def result(self) -> PlanReport | SweepPlanReport:
        """Return the report. Raises the error that was answered."""
        if self.report is None:
            raise ERRORS.get(self.code or "", BitpressError)(self.message)
        return self.report
