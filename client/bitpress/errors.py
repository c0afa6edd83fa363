"""The errors of Bitpress: one table, the same at both ends of the wire.

BitpressError
├── InvalidJob          invalid-job          422  the job cannot be run as it is written
├── InvalidRequest      invalid-request      422  a key, a webhook, a change, a filter that cannot be
├── ForbiddenAddress    forbidden-address    422  an address that the service does not call
├── Unauthorized        unauthorized         401  no key, or one that is not known
├── Forbidden           forbidden            403  the key lacks the scope
├── NotFound            not-found            404
├── Conflict            conflict             409
├── PreconditionFailed  precondition-failed  412  the job is not the version that If-Match names
├── TooManyJobs         too-many-jobs        429  retryable, after Retry-After
├── TooManyRequests     too-many-requests    429  retryable, after Retry-After
├── TooManyStreams      too-many-streams     429  retryable, once another event stream is closed
├── Unavailable         unavailable          503  retryable: Redis, the object store or the service is down
├── SourceNotAllowed    source-not-allowed   422  a model or a text that this service does not read
├── UnsupportedModel    unsupported-model    422  not a decoder that Bitpress knows
├── CheckpointError     bad-checkpoint       422  files missing, tensors missing, values that are not finite
├── CalibrationError    bad-calibration           a text that cannot be read or is too short
├── NumericalError      numerical-failure         a Hessian that cannot be factorized, an activation that is not finite
├── OutOfMemory         out-of-memory        422  the plan does not fit, or a device ran out
├── Cancelled           cancelled                 the user asked the job to stop
├── WorkerLost          worker-lost               retryable: a device, a host or the driver died
├── StoreError          store-failure             retryable: an object could not be written or read
├── ConfigError         bad-config                the client's configuration file cannot be used
├── GateFailed          gate-failed               the result is kept, but misses what the spec's gate asks for
├── EvaluationFailed    evaluation-failed         the result is kept, but a part of its evaluation failed
├── LoadCheckFailed     load-check-failed         the result is kept, but it does not open as what was calibrated
└── ArtifactError       bad-artifact         409  an artifact that is incomplete, was changed, or is another version's

`code` is stable and may be matched on; messages are for people and may change.
Errors without an HTTP status happen inside a job and reach the user as its `Failure`; those of 422 that
are not about the spec itself are answers to a plan as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self


class BitpressError(Exception):
    """Base of every error Bitpress raises on purpose.

    `details` holds (path, message) pairs when single fields are to blame.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    retry_after_seconds: float = 1.0

    def __init__(self, message: str, details: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple((path, text) for path, text in details)

    def __reduce__(self) -> tuple[type[Self], tuple[str, tuple[tuple[str, str], ...]]]:
        # Exceptions cross process borders (Ray, subprocesses); the default would lose `details`.
        return type(self), (self.message, self.details)


class InvalidJob(BitpressError):
    code = "invalid-job"
    status = 422


class InvalidRequest(BitpressError):
    code = "invalid-request"
    status = 422


class ForbiddenAddress(BitpressError):
    code = "forbidden-address"
    status = 422


class Unauthorized(BitpressError):
    code = "unauthorized"
    status = 401


class Forbidden(BitpressError):
    code = "forbidden"
    status = 403


class NotFound(BitpressError):
    code = "not-found"
    status = 404


class Conflict(BitpressError):
    code = "conflict"
    status = 409


class PreconditionFailed(BitpressError):
    code = "precondition-failed"
    status = 412


class TooManyJobs(BitpressError):
    code = "too-many-jobs"
    status = 429
    retryable = True
    retry_after_seconds = 60.0


class TooManyRequests(BitpressError):
    code = "too-many-requests"
    status = 429
    retryable = True


class TooManyStreams(BitpressError):
    code = "too-many-streams"
    status = 429
    retryable = True


class Unavailable(BitpressError):
    code = "unavailable"
    status = 503
    retryable = True


class SourceNotAllowed(BitpressError):
    code = "source-not-allowed"
    status = 422


class UnsupportedModel(BitpressError):
    code = "unsupported-model"
    status = 422


class CheckpointError(BitpressError):
    code = "bad-checkpoint"
    status = 422


class CalibrationError(BitpressError):
    code = "bad-calibration"


class NumericalError(BitpressError):
    code = "numerical-failure"


class OutOfMemory(BitpressError):
    code = "out-of-memory"
    status = 422


class Cancelled(BitpressError):
    code = "cancelled"


class WorkerLost(BitpressError):
    code = "worker-lost"
    retryable = True


class StoreError(BitpressError):
    code = "store-failure"
    retryable = True


class ConfigError(BitpressError):
    code = "bad-config"


class ArtifactError(BitpressError):
    code = "bad-artifact"
    status = 409


class GateFailed(BitpressError):
    code = "gate-failed"


class EvaluationFailed(BitpressError):
    code = "evaluation-failed"


class LoadCheckFailed(BitpressError):
    code = "load-check-failed"


ERRORS: dict[str, type[BitpressError]] = {
    cls.code: cls
    for cls in (
        BitpressError, InvalidJob, InvalidRequest, ForbiddenAddress, Unauthorized, Forbidden, NotFound, Conflict,
        PreconditionFailed, TooManyJobs, TooManyRequests, TooManyStreams, Unavailable, SourceNotAllowed,
        UnsupportedModel, CheckpointError, CalibrationError, NumericalError, OutOfMemory, Cancelled, WorkerLost,
        StoreError, ConfigError, ArtifactError, GateFailed, EvaluationFailed, LoadCheckFailed,
    )
}  # fmt: skip


def from_problem(problem: Mapping[str, Any], status: int) -> BitpressError:
    """Rebuild the error that a problem+json body (RFC 9457) stands for.

    The class comes from the body's `code`, else from the HTTP status, else it is BitpressError.
    """
    by_status = {cls.status: cls for cls in reversed(ERRORS.values()) if cls.status != BitpressError.status}
    cls = ERRORS.get(str(problem.get("code"))) or by_status.get(status, BitpressError)
    message = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    return cls(message, [(str(e.get("pointer", "")), str(e.get("detail", ""))) for e in problem.get("errors", ())])
