"""The events of jobs to all who follow them: one reader of the store in a process, however many followers.

The reader asks for the new events of every followed job at once and hands each on to the followers of its job.
A follower has a bounded backlog: one that is too slow for it is dropped and comes back behind the last event it saw.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi.sse import format_sse_event

from bitpress.errors import NotFound, TooManyStreams, Unavailable
from bitpress.jobs import Event, Job, StateEvent
from bitpress_service.jobstore import JobStore

BACKLOG = 1000  # events; a job sends a few a second
# A job that is followed anew joins the next round of the reader, which holds one connection all the time.
ROUND_SECONDS = 0.1
OUTAGE_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """An event as it goes over the wire, made once for all followers; `last` when the job has ended with it."""

    order: tuple[int, int]
    data: bytes
    last: bool


class _Follower:
    """What one stream is still to send. `over`: nothing more is added."""

    def __init__(self, seen: tuple[int, int]) -> None:
        self._seen = seen
        self._backlog: deque[Message] = deque()
        self._changed = asyncio.Event()
        self.over = False

    def add(self, message: Message) -> None:
        # The reader goes back for a follower that joins late; the others have seen that part.
        if self.over or message.order <= self._seen:
            return
        self._seen = message.order
        self._backlog.append(message)
        if message.last or len(self._backlog) >= BACKLOG:
            self.over = True
        self._changed.set()

    def end(self) -> None:
        self.over = True
        self._changed.set()

    @property
    def done(self) -> bool:
        return self.over and not self._backlog

    async def take(self, wait_seconds: float) -> bytes:
        """All there is to send; empty when nothing came within `wait_seconds`, or when it is over."""
        try:
            async with asyncio.timeout(wait_seconds):
                await self._changed.wait()
        except TimeoutError:
            return b""
        data = b"".join(message.data for message in self._backlog)
        self._backlog.clear()
        if not self.over:
            self._changed.clear()
        return data


class EventFeed:
    """The followers of one process. `max_streams` is how many each API key may have open here."""

    def __init__(self, jobs: JobStore, max_streams: int) -> None:
        self._jobs = jobs
        self._max_streams = max_streams
        self._open: Counter[str] = Counter()
        self._followers: dict[str, set[_Follower]] = {}
        self._positions: dict[str, str] = {}  # of each followed job, the id of the last event that was read
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    def admit(self, key_id: str) -> None:
        """Count a stream of this key, until `dismiss`. Raises TooManyStreams."""
        if self._open[key_id] >= self._max_streams:
            raise TooManyStreams(
                f"key {key_id} has {self._max_streams} event streams open; close one, or read pages of events "
                "with 'Accept: application/json'"
            )
        self._open[key_id] += 1

    def dismiss(self, key_id: str) -> None:
        self._open[key_id] -= 1
        if not self._open[key_id]:
            del self._open[key_id]

    @property
    def num_streams(self) -> int:
        return self._open.total()

    def close(self) -> None:
        """End every stream, and those that are still to be opened: the service is about to stop."""
        self._closed = True
        for followers in self._followers.values():
            for follower in followers:
                follower.end()
        if self._reader is not None:
            self._reader.cancel()

    async def follow(self, job: Job, past: Sequence[Event], after: str, wait_seconds: float) -> AsyncIterator[bytes]:
        """The messages of `past`, then those behind it until the job has ended; empty when none came for
        `wait_seconds`. `past` is what stood behind the event `after` when it was read, after `job` was.

        Ends early when the service stops or the follower is too slow.
        """
        messages = [_message(event) for event in past]
        if messages:
            yield b"".join(message.data for message in messages)
        # Once a job has ended, nothing follows what is read after that.
        if job.state.terminal or (messages and messages[-1].last):
            return
        with self._joined(job.id, past[-1].id if past else after) as follower:
            while not follower.done:
                data = await follower.take(wait_seconds)
                if data or not follower.over:
                    yield data
                if not data and await self._has_ended(job.id):
                    return

    async def _has_ended(self, job_id: str) -> bool:
        """Asked when nothing comes: who wants the events behind one that is still to be would wait for ever."""
        try:
            return (await self._jobs.get(job_id)).state.terminal
        except NotFound:
            return True
        except Unavailable:
            return False

    @contextmanager
    def _joined(self, job_id: str, after: str) -> Iterator[_Follower]:
        follower = _Follower(_order(after))
        if self._closed:
            follower.end()
        self._followers.setdefault(job_id, set()).add(follower)
        self._positions[job_id] = min(self._positions.get(job_id, after), after, key=_order)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        try:
            yield follower
        finally:
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id], self._positions[job_id]

    async def _read(self) -> None:
        """Hand on what happens for as long as anybody follows."""
        while self._followers and not self._closed:
            asked = dict(self._positions)
            try:
                found = await self._jobs.new_events(asked, ROUND_SECONDS)
            except Unavailable as error:
                log.warning("no events can be read: %s", error)
                await asyncio.sleep(OUTAGE_SECONDS)
                continue
            for job_id, events in found.items():
                self._hand_on(job_id, events)
                # Unless a follower who joined meanwhile has set it back.
                if self._positions.get(job_id) == asked[job_id]:
                    self._positions[job_id] = events[-1].id

    def _hand_on(self, job_id: str, events: Sequence[Event]) -> None:
        for message in map(_message, events):
            for follower in self._followers.get(job_id, ()):
                follower.add(message)


def _message(event: Event) -> Message:
    data = format_sse_event(event=event.type, id=event.id, data_str=event.model_dump_json())
    return Message(_order(event.id), data, isinstance(event, StateEvent) and event.state.terminal)


def _order(event_id: str) -> tuple[int, int]:
    """Event ids are two numbers; the second may be left out by who asks."""
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
