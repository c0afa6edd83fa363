"""What becomes of a job whose attempt failed: tried again after a pause, or failed for good."""

from dataclasses import dataclass

from bitpress.errors import BitpressError, WorkerLost
from bitpress.jobs import Failure, Job

MAX_FAILURES = 3
FIRST_DELAY_SECONDS = 2.0


@dataclass(frozen=True)
class Verdict:
    """`retry_after_seconds` is None when the job has failed for good."""

    failure: Failure
    retry_after_seconds: float | None


def judge(job: Job, error: BitpressError) -> Verdict:
    """Retry what may go better next time, MAX_FAILURES times in all, with doubling pauses."""
    failure = Failure(code=error.code, message=error.message, retryable=error.retryable, attempt=job.attempt)
    again = error.retryable and job.failures + 1 < MAX_FAILURES
    return Verdict(failure, FIRST_DELAY_SECONDS * 2**job.failures if again else None)


def crash(exit_code: int, last_lines: str) -> WorkerLost:
    """The error of a driver that ended without saying why."""
    how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
    return WorkerLost(f"the driver {how}" + (f"; its last words: {last_lines}" if last_lines else ""))
