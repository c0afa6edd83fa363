"""Who reads the page: an API key is exchanged for a cookie; every other page asks for that."""

from collections.abc import Callable, Coroutine
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from bitpress.errors import Forbidden, Unauthorized
from bitpress_service.keys import Key
from bitpress_service.sessions import SESSION_SECONDS, Sessions, csrf_token
from bitpress_service.web.rendering import SESSION_COOKIE, THEME_COOKIE, THEMES, render

HOME = "/ui/jobs"

router = APIRouter()

Form = list[tuple[str, str]]


async def read_form(request: Request) -> Form:
    """The fields of a posted form in their order; one name may come several times."""
    return parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)


class SessionRoute(APIRoute):
    """A route for those who are logged in. A form must carry the token of its session."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_caller(request: Request) -> Response:
            token = request.cookies.get(SESSION_COOKIE, "")
            request.state.key = await _identify(request, token)
            if request.method != "GET":
                sent = dict(await read_form(request)).get("csrf", "")
                if not compare_digest(sent.encode(), csrf_token(token).encode()):
                    raise Forbidden("this form is not of your session; reload the page it was on")
            return await handle(request)

        return handle_caller


async def _identify(request: Request, token: str) -> Key:
    sessions: Sessions = request.app.state.sessions
    key = await sessions.key(token) if token else None
    if key is None:
        raise Unauthorized("log in first")
    return key


def login_url(request: Request) -> str:
    """Where to log in, to come back to the page that is open."""
    if request.method != "GET":
        return "/ui/login"
    page = urlsplit(request.headers.get("hx-current-url", str(request.url)))  # a script asks for a part of a page
    where = page.path + (f"?{page.query}" if page.query else "")
    return f"/ui/login?next={quote(where, safe='')}"


@router.get("/")
async def home() -> Response:
    return RedirectResponse(HOME, 303)


@router.get("/login")
async def login_page(request: Request, next: str = HOME) -> Response:  # noqa: A002 - the word of the address
    return render(request, "login.html", next=_own(next), problem=None)


@router.post("/login")
async def login(request: Request) -> Response:
    _check_origin(request)
    form = dict(await read_form(request))
    where = _own(form.get("next", ""))
    sessions: Sessions = request.app.state.sessions
    token = await sessions.open(form.get("key", "").strip())
    if token is None:
        return render(request, "login.html", 401, next=where, problem="This API key is not known.")
    answer = RedirectResponse(where, 303)
    answer.set_cookie(
        SESSION_COOKIE, token, SESSION_SECONDS, path="/ui", secure=request.url.scheme == "https", httponly=True,
        samesite="strict",
    )  # fmt: skip
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    _check_origin(request)
    sessions: Sessions = request.app.state.sessions
    await sessions.close(request.cookies.get(SESSION_COOKIE, ""))
    answer = RedirectResponse("/ui/login", 303)
    answer.delete_cookie(SESSION_COOKIE, path="/ui")
    return answer


@router.post("/theme")
async def theme(request: Request) -> Response:
    """Light, dark or as the system has it; kept in a cookie, so that a page comes in its colours at once."""
    _check_origin(request)
    form = dict(await read_form(request))
    wanted = form.get("theme", "")
    answer = RedirectResponse(_own(form.get("next", "")), 303)
    if wanted in THEMES:
        answer.set_cookie(THEME_COOKIE, wanted, 365 * 24 * 3600, path="/ui", samesite="strict")
    return answer


def _own(path: str) -> str:
    """The path when it is one of ours, else home: nobody is sent elsewhere after a login."""
    parts = urlsplit(path)
    is_own = not parts.scheme and not parts.netloc and path.startswith("/ui/") and "\\" not in path
    return path if is_own else HOME


def _check_origin(request: Request) -> None:
    """Forms that need no session are taken from our own pages alone."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden(f"a form of {origin} is not taken here")
