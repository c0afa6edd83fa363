"""Metrics for Prometheus."""

import ipaddress

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from bitpress.errors import Forbidden
from bitpress_service.auth import identify
from bitpress_service.metrics import ProcessMetrics, StoreMetrics

router = APIRouter(tags=["system"])

SCOPE = "metrics:read"


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """The queue, attempts, outcomes and requests in Prometheus' text format.

    Who does not call from this machine needs a key with the scope metrics:read.
    """
    if not _is_local(request) and SCOPE not in (key := await identify(request)).scopes:
        raise Forbidden(f"API key {key.id} lacks the scope {SCOPE}")
    store: StoreMetrics = request.app.state.metrics
    process: ProcessMetrics = request.app.state.process_metrics
    return PlainTextResponse(process.render(await store.read()), media_type=CONTENT_TYPE_LATEST)


def _is_local(request: Request) -> bool:
    """The server has put the address that a proxy on this machine names in place of the proxy's own."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
