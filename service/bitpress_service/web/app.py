"""The page as an application of its own, mounted at /ui: its own errors, its own headers, the API's stores."""

from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders, State
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitpress_service.sessions import Sessions
from bitpress_service.web import cluster, compare, failures, jobs, keys, login, steering, submission
from bitpress_service.web.linears import BlockReports

STATIC = Path(__file__).parent / "static"

# Nothing but files of ours; no script or style within a page, no frame around it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def create_web(state: State) -> FastAPI:
    """Build the page over the `state` of the API's application."""
    web = FastAPI(openapi_url=None)
    web.state = state
    state.sessions = Sessions(state.keys)
    state.block_reports = BlockReports(state.artifacts)
    failures.install(web)
    web.add_middleware(_Headers)
    for page in (login, jobs, steering, submission, compare, cluster, keys):
        web.include_router(page.router)
    web.mount("/static", StaticFiles(directory=STATIC), name="static")
    return web


class _Headers:
    """What every answer carries; pages are not kept, files are, since a changed file has another address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = scope.get("path", "").startswith("/ui/static/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "public, max-age=31536000" if is_file else "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
