"""Which shard is to blame when a fleet does not get on."""

import threading
from math import inf

import pytest

from bitpress_workers.pipeline.headway import Position, Watch, stack_of

IDLE = Position(busy=False)
WORKING = Position(busy=True, place=(1,))


def waiting_for(whom: str) -> Position:
    return Position(busy=True, place=(1,), waits_for=whom)


@pytest.mark.parametrize(
    ("positions", "found"),
    [
        ([waiting_for("shard 2"), WORKING, None], (2, "does not answer")),
        ([waiting_for("shard 1"), WORKING, IDLE], (1, "stands still")),
        ([IDLE, waiting_for("shard 2"), waiting_for("shard 1")], (1, "waits for shard 2, and nobody gets on")),
        ([IDLE, IDLE, IDLE], None),
    ],
)
def test_the_shard_that_keeps_the_others_waiting_is_found(
    positions: list[Position | None], found: tuple[int, str] | None
) -> None:
    watch = Watch(3)
    watch.begin()
    watch.look(positions)
    watch.look(positions)
    assert watch.standing(seconds=0.0) == found
    assert watch.standing(seconds=inf) is None


def test_a_thread_that_waits_is_where_it_was_and_one_that_goes_on_is_not() -> None:
    events = [threading.Event() for _ in range(4)]

    def work() -> None:
        events[0].set()
        events[1].wait()
        events[2].set()
        events[3].wait()

    thread = threading.Thread(target=work)
    thread.start()
    assert thread.ident is not None
    events[0].wait()
    while (first := stack_of(thread.ident)) != stack_of(thread.ident):  # until it waits
        pass
    events[1].set()
    events[2].wait()
    assert stack_of(thread.ident) != first
    events[3].set()
    thread.join()
