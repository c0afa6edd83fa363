"""Every error of the API as a problem document (RFC 9457), from the one table in `bitpress.errors`.

Members beside the standard ones: `code` (stable), `advice` (what to do next), `request_id`, and `errors` with a JSON
pointer and a message for each field to blame.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from bitpress.advice import advice
from bitpress.errors import BitpressError, InvalidJob, InvalidRequest, StoreError, Unavailable
from bitpress.jobs import pointer

MEDIA_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)

_JOB_SPEC = "the job spec"

# What the body of a request is called, by its method and route.
_BODIES = {
    "POST /v1/jobs": _JOB_SPEC,
    "POST /v1/plans": _JOB_SPEC,
    "POST /v1/keys": "the key",
    "POST /v1/webhooks": "the webhook",
    "PATCH /v1/jobs/{job_id}": "the change",
}

# What the web framework itself refuses; all else has a class in bitpress.errors.
HTTP_CODES = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    416: "range-not-satisfiable",
    422: InvalidRequest.code,
}


class Problem(BaseModel):
    """The body of every answer that is an error."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    advice: str
    request_id: str
    errors: list[dict[str, str]]


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "An error", "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
}


def install(app: FastAPI) -> None:
    """Answer every exception of `app` with a problem document."""
    app.add_exception_handler(BitpressError, _bitpress_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)


async def _bitpress_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BitpressError)
    if isinstance(error, StoreError):
        error = Unavailable(error.message)
    if error.status >= 500:
        _log.error("%s: %s", _named(request), error.message)
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="bitpress"'
    if error.retryable:
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    return _answer(request, error.status, error.code, error.message, error.details, headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """What is wrong is called by its name; a bad job spec has a code of its own."""
    assert isinstance(error, RequestValidationError)
    in_body = any(e["loc"][0] == "body" for e in error.errors())
    what = _BODIES.get(_operation(request), "the body") if in_body else "the request"
    details = [_detail(e, tagged=what == _JOB_SPEC) for e in error.errors()]
    summary = "; ".join(f"{path or '/'}: {text}" for path, text in details)
    code = InvalidJob.code if what == _JOB_SPEC else InvalidRequest.code
    return _answer(request, 422, code, f"{what} is not valid: {summary}", details)


def _operation(request: Request) -> str:
    route = request.scope.get("route")
    return f"{request.method} {route.path_format if route else request.url.path}"


def _detail(error: Mapping[str, Any], *, tagged: bool) -> tuple[str, str]:
    """tagged: in the body, whether it is a job or a sweep stands before the field."""
    location = error["loc"]
    if error["type"] == "json_invalid":
        return "", f"not JSON: {error['ctx']['error']} at character {location[1]}"
    return pointer(tuple(location[2 if tagged and location[0] == "body" else 1 :])), error["msg"]


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "http-error")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers |= _allow(request)
    return _answer(request, error.status_code, code, str(error.detail), headers=headers)


def _allow(request: Request) -> dict[str, str]:
    """Every method of the path; the router names those of one route alone."""
    route = request.scope.get("route")
    methods = request.app.openapi()["paths"].get(route.path_format) if route else None
    return {"Allow": ", ".join(sorted(methods)).upper()} if methods else {}


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s: unexpected error", _named(request), exc_info=error)
    return _answer(request, 500, BitpressError.code, "an unexpected error; the log has it under the request id")


def _named(request: Request) -> str:
    return f"request {request.state.request_id}, {request.method} {request.url.path}"


def _answer(
    request: Request,
    status: int,
    code: str,
    detail: str,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    request_id: str = request.state.request_id
    problem = Problem(
        type=f"/problems/{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        advice=advice(code),
        request_id=request_id,
        errors=[{"pointer": path, "detail": text} for path, text in errors],
    )
    # Set here as well as by the middleware: an unexpected error is answered outside of it.
    headers = {"X-Request-Id": request_id, **(headers or {})}
    return JSONResponse(problem.model_dump(), status, headers, MEDIA_TYPE)
