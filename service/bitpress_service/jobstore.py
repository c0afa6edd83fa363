"""The seam to the state of all jobs: what a store of jobs promises, whatever it is built on.

Every method is one atomic step. A worker's writes carry the fence of its claim; the fence grows
with every claim and every lost lease, so that a worker that came back from the dead is refused
(`Fenced`) and cannot disturb the one that took over.

Every method raises Unavailable when the store cannot be reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from bitpress.cluster import Cluster, DispatcherReport
from bitpress.errors import BitpressError
from bitpress.jobs import Event, Failure, Job, JobEdit, JobFilter, JobPage, JobSpec, Progress
from bitpress.plans import PlanAnswer, PlanRequest, SweepPlanRequest
from bitpress.sweeps import SweepSpec

Outcome = Literal["succeeded", "failed", "cancelled"]
ALL = JobFilter()
PATIENCE = 600.0  # seconds for which smaller jobs may overtake one that waits for devices


class Fenced(BitpressError):
    """The lease was lost: the job belongs to another attempt, or has ended. Stop, and write nothing more."""

    code = "fenced"
    status = 409


@dataclass(frozen=True)
class Claim:
    """A job as its new worker gets it. Every write of this attempt carries `fence`.

    traceparent: the span that the job was submitted in; empty when there was none. others: the other members of its
    sweep that waited, each under a lease of its own; one worker runs them together.
    """

    job: Job
    fence: int
    traceparent: str = ""
    others: tuple["Claim", ...] = ()

    @property
    def group(self) -> tuple["Claim", ...]:
        """All that was claimed."""
        return self, *self.others


@dataclass(frozen=True)
class Capacity:
    """All the devices of a cluster, which several dispatchers may share; 0 while it cannot be reached."""

    cluster: str
    devices: int


@dataclass(frozen=True)
class Holding:
    """What a running job holds of a cluster, which is '' on a dispatcher's own host.

    devices: 0 there, and for a job that shares those of another one.
    """

    job_id: str
    tenant: str
    owner: str
    cluster: str
    devices: int


@dataclass(frozen=True)
class BlockRecord:
    """A published block: where its file and its sidecar lie, and their hashes. The index a resume starts from."""

    index: int
    name: str
    key: str
    sha256: str
    bytes: int
    relative_error: float
    sidecar_key: str
    sidecar_sha256: str


@dataclass(frozen=True)
class PlanOrder:
    """A plan that is asked for."""

    id: str
    request: PlanRequest | SweepPlanRequest


class LeaseStatus(StrEnum):
    """What a worker is told on every write: go on, or wind down because the user paused or cancelled."""

    OK = "ok"
    PAUSE = "pause"
    CANCEL = "cancel"


class JobRequests(Protocol):
    """What users ask of their jobs. Times are the store's own clock."""

    async def create(
        self,
        tenant: str,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        max_waiting: int | None = None,
    ) -> tuple[Job, bool]:
        """Store and queue a job; the flag is true when `idempotency_key` had already made this very job.

        Raises Conflict when the key was used with another spec or priority in the last 24 hours; TooManyJobs
        when `max_waiting` jobs of the tenant are queued or paused.
        """
        ...

    async def create_sweep(
        self,
        tenant: str,
        sweep: SweepSpec,
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
        max_waiting: int | None = None,
    ) -> tuple[Sequence[Job], bool]:
        """Store and queue all members of a sweep, or none; in the order of its methods. As `create` otherwise."""
        ...

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        """Raises NotFound, also when the job is another tenant's."""
        ...

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None, where: JobFilter = ALL) -> JobPage:
        """Newest first. A page with a cursor may hold fewer than `limit`, even none.

        Raises ValueError for a cursor that is none.
        """
        ...

    async def request_cancel(self, job_id: str, tenant: str | None = None) -> Job:
        """A job that waits is cancelled at once, a running one becomes `cancelling`, one that ended stays as it is.

        Raises NotFound.
        """
        ...

    async def pause(self, job_id: str, tenant: str) -> Job:
        """A queued job is paused at once, a running one becomes `pausing`; its published blocks stay.

        Raises NotFound; Conflict when it has ended or is being cancelled.
        """
        ...

    async def resume(self, job_id: str, tenant: str) -> Job:
        """Queue a paused job again, or forget that a running one was to be paused. Raises as `pause` does."""
        ...

    async def retry(self, job_id: str, tenant: str, *, fresh: bool = False, max_waiting: int | None = None) -> Job:
        """Queue a job that failed or was cancelled again; `fresh` forgets the blocks it has published.

        Raises NotFound; Conflict when it neither failed nor was cancelled; TooManyJobs as `create` does.
        """
        ...

    async def edit(self, job_id: str, tenant: str, edit: JobEdit, expected_version: int | None = None) -> Job:
        """Change what `edit` gives.

        Raises NotFound; PreconditionFailed when the job has another version than the expected one; Conflict
        for another priority of a job that does not wait.
        """
        ...

    async def delete(self, job_id: str, tenant: str) -> None:
        """Forget a job that has ended; its objects go to the trash. Raises NotFound; Conflict when it has not ended."""
        ...

    async def trash(self) -> Sequence[str]:
        """Prefixes of objects that no job owns any more."""
        ...

    async def emptied(self, prefix: str) -> None:
        """The objects below a prefix of the trash are gone."""
        ...

    async def changed(self, job_id: str, version: int, wait_seconds: float) -> None:
        """Return once the job has another version or is gone, after `wait_seconds` at the latest."""
        ...

    async def events(self, job_id: str, after: str = "0", limit: int = 1000) -> Sequence[Event]:
        """The events behind the one with id `after`, oldest first."""
        ...

    async def new_events(self, after: Mapping[str, str], wait_seconds: float) -> Mapping[str, Sequence[Event]]:
        """The events behind those named for each of several jobs, for the jobs that have any.

        Waits for the first one at most `wait_seconds`. May leave some out that the next call returns.
        """
        ...

    async def files(self, job_id: str) -> dict[str, str]:
        """The artifact: file name to object key. Empty until it is complete."""
        ...


class JobWork(Protocol):
    """What workers do with jobs. Times are the store's own clock, never a worker's."""

    async def claim(
        self, owner: str, lease_seconds: float, capacity: Capacity | None = None, patience_seconds: float = PATIENCE
    ) -> Claim | None:
        """Take the first job of the queue: highest priority, then oldest. None when nothing is due.

        A member of a sweep comes with the others that wait, also after a failure; but a member that has lost two
        attempts in a row comes alone, since another one may be to blame.
        With a capacity, the first for which enough devices of its cluster are held by no other job; those that
        have to wait are told so in `status_detail`. One that was passed over for `patience_seconds` is not
        passed over any more, unless it asks for more devices than there are.
        """
        ...

    async def renew(self, job_id: str, fence: int, lease_seconds: float) -> LeaseStatus:
        """Raises Fenced."""
        ...

    async def record(
        self,
        job_id: str,
        fence: int,
        *,
        progress: Progress | None = None,
        block: BlockRecord | None = None,
        log: str | None = None,
        status_detail: str | None = None,
    ) -> LeaseStatus:
        """Write what is given and send its events. A new block forgets earlier failures, a known one changes nothing.

        status_detail: shown beside the state until it is written again, or the state changes; "" ends it.

        Raises Fenced.
        """
        ...

    async def blocks(self, job_id: str) -> dict[int, BlockRecord]:
        """The published blocks by index, of all attempts."""
        ...

    async def finish(
        self,
        job_id: str,
        fence: int,
        *,
        state: Outcome,
        error: Failure | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Job:
        """End the job; `error` goes with "failed", `files` (name to object key) with "succeeded", or with a "failed"
        whose artifact is complete but not what was asked for.

        When the user asked to cancel before this call, the job ends cancelled whatever `state` says.
        Finishing again with the same fence returns the job as it ended.
        Raises Fenced; Conflict for "cancelled" when nobody asked to cancel.
        """
        ...

    async def release(self, job_id: str, fence: int, *, delay_seconds: float, error: Failure | None = None) -> Job:
        """Give the job back to the queue, not to be claimed for `delay_seconds`; `error` counts as a failure.

        A job that the user asked to cancel ends cancelled, one that is to be paused is paused. Raises Fenced.
        """
        ...

    async def reap(self, max_stalled_attempts: int = 3) -> Sequence[str]:
        """Take back the jobs whose lease has run out, and return their ids.

        Those that were claimed together are taken back together.
        Each goes to the queue again; it fails (worker-lost) after `max_stalled_attempts` lost attempts
        in a row that published no block; it is paused or ends cancelled when the user asked for that.
        """
        ...


class ClusterBoard(Protocol):
    """What dispatchers say of themselves and their devices."""

    async def report(self, report: DispatcherReport, keep_seconds: float) -> None:
        """Forgotten after `keep_seconds`, unless it is said again."""
        ...

    async def cluster(self) -> Cluster: ...

    async def holdings(self) -> Sequence[Holding]:
        """What the jobs that run hold, of all tenants."""
        ...


class Plans(Protocol):
    """Plans that are asked for and answered."""

    async def ask_plan(self, request: PlanRequest | SweepPlanRequest, keep_seconds: float) -> str:
        """Queue a plan to be made, which is forgotten after `keep_seconds`; returns its id.

        The same request again is the same plan, while it is kept.
        """
        ...

    async def claim_plan(self) -> PlanOrder | None:
        """Take the oldest plan that is asked for. One whose claimer is lost is asked for again, not claimed again."""
        ...

    async def answer_plan(self, plan_id: str, answer: PlanAnswer) -> None:
        """Answer a plan, for those who wait now; who asks later has it made anew."""
        ...

    async def plan_answer(self, plan_id: str, wait_seconds: float) -> PlanAnswer | None:
        """The answer, waited for at most `wait_seconds`; None when there is none."""
        ...


class JobStore(JobRequests, JobWork, ClusterBoard, Plans, Protocol):
    """All jobs of all tenants."""

    async def ping(self) -> None:
        """Raises Unavailable when the store is down, or set up so that it may drop what it holds."""
        ...

    async def aclose(self) -> None: ...
