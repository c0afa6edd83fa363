"""Errors as pages that say what to do next."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from bitpress.advice import advice
from bitpress.errors import BitpressError, StoreError, Unauthorized, Unavailable
from bitpress_service.web.login import login_url
from bitpress_service.web.rendering import render

_log = logging.getLogger(__name__)


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
