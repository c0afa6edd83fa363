"""What happens to a job, as it happens: server-sent events, or all so far as one JSON page."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT
from starlette.types import Receive, Scope, Send

from bitpress_service.auth import KeyedRoute
from bitpress_service.event_feed import EventFeed
from bitpress_service.routes.dependencies import Feed, JobReader, Jobs, accepts

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"], route_class=KeyedRoute)

KEEPALIVE_SECONDS = 15
# All that a job's stream keeps, with room to spare (see lua/common.lua).
ALL_EVENTS = 20_000

# 19 digits are always below the largest stream id.
_EVENT_ID = r"^\d{1,19}(-\d{1,19})?$"


@router.get("", responses={200: {"content": {"text/event-stream": {}, "application/json": {}}}})
async def events(
    request: Request,
    job_id: str,
    caller: JobReader,
    jobs: Jobs,
    feed: Feed,
    last_event_id: Annotated[str | None, Header(pattern=_EVENT_ID)] = None,
    after: Annotated[str, Query(pattern=_EVENT_ID)] = "0",
) -> Response:
    """Events behind `Last-Event-ID` (or `after`) until the job has ended; a page of those so far for
    `Accept: application/json`. A stream that ends before its job goes on with `Last-Event-ID`."""
    after = last_event_id or after
    job = await jobs.get(job_id, caller.tenant)
    past = await jobs.events(job_id, after, ALL_EVENTS)
    if accepts(request, "application/json"):
        return JSONResponse({"object": "list", "data": [event.model_dump(mode="json") for event in past]})
    return _EventStream(feed, caller.id, feed.follow(job, past, after, KEEPALIVE_SECONDS))


class _EventStream(StreamingResponse):
    """Messages as they come, a comment when none does, counted as one of its key's streams until it ends."""

    def __init__(self, feed: EventFeed, key_id: str, messages: AsyncIterator[bytes]) -> None:
        # The last header keeps nginx from holding events back.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        feed.admit(key_id)
        super().__init__(_kept_alive(messages), 200, headers, "text/event-stream")
        self._feed = feed
        self._key_id = key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.dismiss(self._key_id)


async def _kept_alive(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message or KEEPALIVE_COMMENT
