"""Which failures are tried again."""

from datetime import UTC, datetime

import pytest

from bitpress.errors import BitpressError, CheckpointError, NumericalError, StoreError, WorkerLost
from bitpress.jobs import Job, JobState, parse_spec
from bitpress_workers.failure import MAX_FAILURES, crash, judge

SPEC = parse_spec(
    {
        "model": {"uri": "m"},
        "method": {"kind": "rtn", "bits": 4},
        "calibration": {"dataset": "c4"},
    }
)


def job(failures: int) -> Job:
    now = datetime.now(UTC)
    return Job(id="job_1", tenant="t", state=JobState.RUNNING, spec=SPEC, failures=failures, attempt=2, created_at=now)


@pytest.mark.parametrize("error", [CheckpointError("x"), NumericalError("x"), BitpressError("x")])
def test_what_would_fail_again_fails_for_good(error: BitpressError) -> None:
    verdict = judge(job(0), error)
    assert verdict.retry_after_seconds is None
    assert (verdict.failure.code, verdict.failure.attempt) == (error.code, 2)


def test_what_may_go_better_is_retried_with_growing_pauses_then_fails() -> None:
    delays = [judge(job(failures), StoreError("disk full")).retry_after_seconds for failures in range(MAX_FAILURES)]
    assert delays == [2.0, 4.0, None]


def test_a_crash_says_how_the_driver_ended() -> None:
    assert isinstance(crash(-9, ""), WorkerLost)
    assert "signal 9" in crash(-9, "").message
    assert "exit code 3; its last words: boom" in crash(3, "boom").message
