"""Errors as pages that say what to do next."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from bitpress.errors import BitpressError, StoreError, Unauthorized, Unavailable
from bitpress_service.web.login import login_url
from bitpress_service.web.rendering import render

# What a reader may do about an error; those inside a job are met on its page, the others anywhere.
ADVICE = {
    "internal": "This is a fault of Bitpress. The service's log has it under the request id; please report it.",
    "invalid-job": "Correct what is named and submit again.",
    "unauthorized": "Log in with an API key that exists and has not expired.",
    "forbidden": "Log in with a key that has this scope, or ask an administrator for one.",
    "not-found": "Check the address. Jobs of other tenants and deleted jobs are not found either.",
    "conflict": "The job has changed meanwhile. Go back, reload the page and look at its state.",
    "precondition-failed": "The job has changed meanwhile. Reload its page and look at it again.",
    "source-not-allowed": "Use a model and texts from the places named, or ask the operator to allow this one.",
    "too-many-requests": "Wait a moment, then reload: this key has asked too often.",
    "too-many-jobs": "Wait until some jobs have ended, or cancel what is not needed any more.",
    "too-many-streams": "Close other pages that follow jobs with this key, then reload.",
    "unavailable": "Try again in a moment. When it lasts: `bitpress doctor` on the service's machine.",
    "unsupported-model": "Only the decoder families in the README are known; the message says where to describe one.",
    "bad-checkpoint": "Check that the model's directory has config.json, safetensors and a tokenizer.",
    "bad-calibration": "Check that the text can be read by the worker and is long enough for the windows asked for.",
    "numerical-failure": "Raise `damping`, or calibrate with more sequences; the message names the linear.",
    "out-of-memory": "Use fewer or shorter sequences, more devices, or larger ones; a plan shows the need beforehand.",
    "cancelled": "Nothing to do: it was asked to stop.",
    "worker-lost": "Submit again: a worker died or was cut off. When it repeats, look at the dispatcher's log.",
    "store-failure": "Check the object storage, its address and credentials, and that it is not full; then try again.",
    "bad-artifact": "Fetch the artifact again; when it is still damaged, run the job anew.",
    "gate-failed": "The artifact and its report are there. Spend more bits, try another method, or widen the gate.",
    "evaluation-failed": "The artifact is there, not measured. The message names what failed; evaluate fewer windows.",
}

_log = logging.getLogger(__name__)


def advice(code: str) -> str:
    return ADVICE.get(code, ADVICE["internal"])


def install(web: FastAPI) -> None:
    web.add_exception_handler(BitpressError, _bitpress_error)
    web.add_exception_handler(RequestValidationError, _bad_request)
    web.add_exception_handler(HTTPException, _http_exception)
    web.add_exception_handler(Exception, _unexpected)


async def _bitpress_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BitpressError)
    if isinstance(error, Unauthorized):
        return _to_login(request)
    if isinstance(error, StoreError):
        error = Unavailable(error.message)
    if error.status >= 500:
        _log.error("request %s, %s: %s", request.state.request_id, request.url.path, error.message)
    return _page(request, error.status, error.code, error.message)


def _to_login(request: Request) -> Response:
    url = login_url(request)
    # Scripts follow a redirect themselves and would put the login form into the middle of a page.
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": url})
    return RedirectResponse(url, 303)


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'/'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return _page(request, 422, "not-found", f"the address is not valid: {said}")


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "not-found" if error.status_code == 404 else "conflict"
    return _page(request, error.status_code, code, str(error.detail))


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("request %s, %s: unexpected error", request.state.request_id, request.url.path, exc_info=error)
    return _page(request, 500, "internal", "an unexpected error")


def _page(request: Request, status: int, code: str, message: str) -> Response:
    return render(request, "error.html", status, code=code, message=message, advice=advice(code), status=status)
