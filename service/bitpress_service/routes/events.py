"""What happens to a job, as it happens: server-sent events, or all so far as one JSON page."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from bitpress.jobs import Event
from bitpress_service.auth import KeyedRoute
from bitpress_service.jobstore import JobStore
from bitpress_service.routes.dependencies import JobReader, Jobs, accepts

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"], route_class=KeyedRoute)

KEEPALIVE_SECONDS = 15
# A waiting stream looks up this often to see whether the service is about to stop.
WAIT_SECONDS = 1.0
# All that a stream keeps, with room to spare (see lua/common.lua).
ALL_EVENTS = 20_000

# 19 digits are always below the largest stream id.
_EVENT_ID = r"^\d{1,19}(-\d{1,19})?$"


@router.get("", responses={200: {"content": {"text/event-stream": {}, "application/json": {}}}})
async def events(
    request: Request,
    job_id: str,
    caller: JobReader,
    jobs: Jobs,
    last_event_id: Annotated[str | None, Header(pattern=_EVENT_ID)] = None,
    after: Annotated[str, Query(pattern=_EVENT_ID)] = "0",
) -> Response:
    """Events behind `Last-Event-ID` (or `after`) until the job has ended; a page of those so far for
    `Accept: application/json`."""
    await jobs.get(job_id, caller.tenant)
    after = last_event_id or after
    if accepts(request, "application/json"):
        page = await jobs.events(job_id, after, limit=ALL_EVENTS)
        return JSONResponse({"object": "list", "data": [event.model_dump(mode="json") for event in page]})
    # The last header keeps nginx from holding events back.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(request, jobs, job_id, after), 200, headers, "text/event-stream")


async def _stream(request: Request, jobs: JobStore, job_id: str, after: str) -> AsyncIterator[bytes]:
    quiet_seconds = 0.0
    while not request.app.state.closing.is_set():
        # In this order: once a job has ended, nothing follows what is read after that.
        ended = (await jobs.get(job_id)).state.terminal
        page = await jobs.events(job_id, after, wait_seconds=0 if ended else WAIT_SECONDS)
        for event in page:
            yield _message(event)
            after = event.id
        if ended and not page:
            return
        quiet_seconds = 0.0 if page else quiet_seconds + WAIT_SECONDS
        if quiet_seconds >= KEEPALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            quiet_seconds = 0.0


def _message(event: Event) -> bytes:
    return format_sse_event(event=event.type, id=event.id, data_str=event.model_dump_json())
