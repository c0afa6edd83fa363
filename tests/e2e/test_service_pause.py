"""Jobs that are paused, retried and drained in the real service give the bytes of jobs that were left alone."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_service import EmbeddedService
from pipeline_helpers import block_hashes, make_spec, run

from bitpress.client import Client
from bitpress.jobs import BlockEvent, Event, Job, JobState, ProgressEvent, StateEvent

pytestmark = pytest.mark.slow

SPQR = {"kind": "spqr", "bits": 3}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path / "state")
    service.start()
    yield service
    assert service.stop() == 0


def follow_into_second_block(client: Client, job: Job) -> Event:
    """The event that says that the second block is in hand."""
    for event in client.events(job.id):
        if isinstance(event, ProgressEvent) and event.progress.blocks_done == 1 and event.progress.linear:
            return event
    raise AssertionError("the job ended before that")


def until(client: Client, job: Job, state: JobState, after: str) -> list[Event]:
    events = []
    for event in client.events(job.id, after):
        events.append(event)
        if isinstance(event, StateEvent) and event.state is state:
            return events
    raise AssertionError(f"the job ended, but was never {state}")


def test_a_job_is_paused_resumed_cancelled_and_retried(
    service: EmbeddedService, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, devices=1)
    with service.client() as client:
        job = client.submit(spec)
        seen = follow_into_second_block(client, job)
        assert client.pause(job.id).state is JobState.PAUSING
        events = until(client, job, JobState.PAUSED, seen.id)
        asked = next(i for i, e in enumerate(events) if isinstance(e, StateEvent) and e.state is JobState.PAUSING)
        # The write that learns of it is the last one; the block in hand is dropped.
        assert sum(isinstance(event, ProgressEvent | BlockEvent) for event in events[asked:]) <= 1
        assert service.drivers() == []
        assert client.resume(job.id).state is JobState.QUEUED
        until(client, job, JobState.RUNNING, events[-1].id)
        client.cancel(job.id)
        assert client.wait(job.id).state is JobState.CANCELLED
        client.retry(job.id)
        assert client.wait(job.id).state is JobState.SUCCEEDED
        blocks = [event.index for event in client.history(job.id) if isinstance(event, BlockEvent)]
        assert blocks == [0, 1, 2, 3] and client.get(job.id).failures == 0
        client.pull(job.id, tmp_path / "pulled")
        client.delete(job.id)
        assert [path for path in (service.state / "artifacts").rglob("*") if path.is_file()] == []
    run(spec, tmp_path / "local")
    assert block_hashes(tmp_path / "pulled") == block_hashes(tmp_path / "local")


def test_a_service_that_is_told_to_end_finishes_the_block_in_hand(
    service: EmbeddedService, opt_mini: Path, texts: Path
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, devices=1)
    with service.client() as client:
        job = client.submit(spec)
        seen = follow_into_second_block(client, job)
        assert service.stop(signal.SIGTERM) == 0
    service.start()
    with service.client() as client:
        later = list(client.events(job.id, seen.id))
        states = [event.state for event in later if isinstance(event, StateEvent)]
        assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
        drained = next(place for place, event in enumerate(later) if isinstance(event, StateEvent))
        assert any(isinstance(event, BlockEvent) for event in later[:drained])
        ended = client.get(job.id)
        assert (ended.attempt, ended.failures) == (2, 0)
