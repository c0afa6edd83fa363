"""Who is calling: API keys as bearer tokens, each of one tenant, with its scopes and within its rate."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from bitpress.errors import Forbidden, TooManyRequests, Unauthorized
from bitpress_service.keys import Admission, Key, Keys, Rate, is_mistyped
from bitpress_service.settings import Settings

_bearer = HTTPBearer(auto_error=False)


class KeyedRoute(APIRoute):
    """A route that looks up the caller's key before anything else of the request is read.

    The web framework reads a body before it asks `authenticate`, and would tell a stranger what is wrong with it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_caller(request: Request) -> Response:
            request.state.key = await identify(request)
            return await handle(request)

        return handle_caller


async def identify(request: Request) -> Key:
    """Whose key a request carries. Raises Unauthorized when it has none that is known, TooManyRequests."""
    credentials = await _bearer(request)
    if credentials is None:
        raise Unauthorized("expected the header 'Authorization: Bearer <API key>'")
    if is_mistyped(credentials.credentials):
        raise Unauthorized("this is no API key: its checksum is wrong; was it copied whole?")
    keys: Keys = request.app.state.keys
    settings: Settings = request.app.state.settings
    rate = Rate(settings.requests_per_second, settings.request_burst)
    caller = await keys.admit(credentials.credentials, rate)
    if caller is None:
        raise Unauthorized("this API key is not known: it was never made here, was revoked, or has expired")
    if rate.per_second:
        request.state.headers = _rate_headers(caller, rate)
    if caller.wait_seconds:
        error = TooManyRequests(f"API key {caller.key.id} may ask {rate.per_second:g} times a second; slow down")
        error.retry_after_seconds = caller.wait_seconds
        raise error
    return caller.key


def _rate_headers(caller: Admission, rate: Rate) -> dict[str, str]:
    """What is left, in the words of draft-ietf-httpapi-ratelimit-headers-10."""
    window = max(1, round(rate.burst / rate.per_second))
    refilled = round((rate.burst - caller.remaining) / rate.per_second)
    return {
        "RateLimit-Policy": f'"key";q={rate.burst};w={window}',
        "RateLimit": f'"key";r={caller.remaining};t={refilled}',
    }


async def authenticate(
    request: Request, required: SecurityScopes, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Key:
    """The caller of a KeyedRoute, for `Security(authenticate, scopes=[...])`. Raises Forbidden for a missing scope."""
    key: Key = request.state.key
    if missing := [scope for scope in required.scopes if scope not in key.scopes]:
        raise Forbidden(f"API key {key.id} lacks the scope {missing[0]}")
    return key
