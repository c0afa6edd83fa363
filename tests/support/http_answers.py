"""What a small HTTP server on loopback answers with, where a test plays the service."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

Respond = Callable[[BaseHTTPRequestHandler], None]

SPEC: dict[str, Any] = {
    "model": {"uri": "/models/small"},
    "method": {"kind": "rtn", "bits": 4},
    "calibration": {"dataset": "wikitext2"},
}


def job_json(state: str = "queued", **changes: Any) -> dict[str, Any]:
    """A job as the service sends it, with the members that are not of `Job`."""
    job = {"id": "job_1", "tenant": "local", "state": state, "spec": SPEC, "created_at": "2026-01-01T00:00:00Z"}
    return {"object": "job", "urls": {"self": "/v1/jobs/job_1"}} | job | changes


def send(handler: BaseHTTPRequestHandler, status: int, body: Any, content_type: str = "application/json") -> None:
    """Answer with `body`: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
