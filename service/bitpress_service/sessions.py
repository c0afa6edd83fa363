"""Sessions of browsers: what an API key was exchanged for, so that the page need not keep the key.

A session is a random token in a cookie. `{bp}:session:<sha256 of the token>` holds the SHA-256 of the key it
stands for and ends by itself; the key is looked up with every request, so a session ends with its key as well.
"""

import hmac
import secrets
from typing import Any

from bitpress_service.keys import Key, Keys, sha256_of
from bitpress_service.redis_client import PREFIX, reporting_unavailable

SESSION_SECONDS = 12 * 3600


class Sessions:
    """All sessions, in the Redis of `keys`. Every method raises Unavailable when it cannot be reached."""

    def __init__(self, keys: Keys) -> None:
        self._client = keys.client
        self._keys = keys

    async def open(self, api_key: str) -> str | None:
        """Exchange a key for the token of a new session; None when there is no such key."""
        if await self._keys.lookup(api_key) is None:
            return None
        token = secrets.token_urlsafe(32)
        with reporting_unavailable():
            await self._client.set(_name(token), sha256_of(api_key), ex=SESSION_SECONDS)
        return token

    async def key(self, token: str) -> Key | None:
        """The key a session stands for; None when either has ended."""
        with reporting_unavailable():
            digest: Any = await self._client.get(_name(token))
        return await self._keys.find(digest) if digest else None

    async def close(self, token: str) -> None:
        with reporting_unavailable():
            await self._client.delete(_name(token))


def csrf_token(token: str) -> str:
    """What a form of this session carries: another site can neither read it nor make it from what it knows."""
    return hmac.digest(token.encode(), b"form", "sha256").hex()


def _name(token: str) -> str:
    return f"{PREFIX}session:{sha256_of(token)}"
