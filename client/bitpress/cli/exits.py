"""Exit codes of the command line; they are part of its interface."""

from collections.abc import Sequence

from bitpress.errors import (
    BitpressError,
    Cancelled,
    ConfigError,
    Conflict,
    Forbidden,
    ForbiddenAddress,
    GateFailed,
    InvalidJob,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    SourceNotAllowed,
    TooManyJobs,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from bitpress.jobs import Job, JobState

FAILED = 1
USAGE = 2
SERVICE = 6
WAIT_TIMEOUT = 7
CANCELLED = 8
GATE_MISSED = 9
DETACHED = 130

MEANINGS = {
    0: "it worked",
    FAILED: "the job failed, or something on this machine did",
    USAGE: "the command line or the configuration is wrong, or a part of Bitpress is not installed",
    3: "no such job, report or artifact",
    4: "no key, or one that may not do this",
    5: "the service refused the job or the change",
    SERVICE: "the service cannot be reached, is full or made an error",
    WAIT_TIMEOUT: "the job had not ended when --timeout was over",
    CANCELLED: "the job was cancelled",
    GATE_MISSED: "the job's result misses its gate; it is kept",
    DETACHED: "Ctrl-C; a job that was watched goes on",
}

BY_ERROR: dict[type[BitpressError], int] = {
    ConfigError: USAGE,
    NotFound: 3,
    Unauthorized: 4,
    Forbidden: 4,
    InvalidJob: 5,
    InvalidRequest: 5,
    ForbiddenAddress: 5,
    Conflict: 5,
    PreconditionFailed: 5,
    SourceNotAllowed: 5,
    TooManyJobs: SERVICE,
    TooManyRequests: SERVICE,
    Unavailable: SERVICE,
    BitpressError: SERVICE,
    Cancelled: CANCELLED,
    GateFailed: GATE_MISSED,
}


def exit_code(error: BitpressError | OSError) -> int:
    if isinstance(error, BitpressError):
        return BY_ERROR.get(type(error), FAILED)
    return WAIT_TIMEOUT if isinstance(error, TimeoutError) else FAILED


def outcome(jobs: Sequence[Job]) -> int:
    """The code for jobs that have ended: a failure outweighs a missed gate, that a cancellation, that success."""
    found = {_outcome(job) for job in jobs}
    return next((code for code in (FAILED, GATE_MISSED, CANCELLED) if code in found), 0)


def _outcome(job: Job) -> int:
    if job.state is JobState.FAILED:
        return GATE_MISSED if job.error and job.error.code == GateFailed.code else FAILED
    return CANCELLED if job.state is JobState.CANCELLED else 0
