"""A finished compression outlasts whatever its evaluation ends with, but for what another attempt may get over."""

import pytest

from bitpress.errors import ArtifactError, Cancelled, OutOfMemory, StoreError, WorkerLost
from bitpress_service.jobstore import Fenced
from bitpress_workers.pipeline.evaluate import surviving
from bitpress_workers.pipeline.member import FleetSpoiled, MembersEnded


def ending_with(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OutOfMemory("a device ran out of memory: 3 GiB"), "out-of-memory", "3 GiB"),
        (RuntimeError("CUDA error"), "internal", "RuntimeError: CUDA error"),
        (KeyError("acc"), "internal", "KeyError: 'acc'"),
    ],
)
def test_it_is_noted(error: Exception, code: str, words: str) -> None:
    found = surviving(lambda: ending_with(error))
    assert found is not None
    (failure,) = found.failures
    assert (failure.part, failure.code) == ("quality", code) and words in failure.message
    assert surviving(lambda: None) is None


@pytest.mark.parametrize(
    "error",
    [WorkerLost("gone"), StoreError("away"), Cancelled("asked"), Fenced("another's"), ArtifactError("changed"),
     FleetSpoiled(), MembersEnded()],
)  # fmt: skip
def test_it_is_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)):
        surviving(lambda: ending_with(error))
