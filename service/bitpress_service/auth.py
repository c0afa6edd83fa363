"""Who is calling: API keys as bearer tokens, each of one tenant and with the scopes it was given.

Only a key's SHA-256 is stored. A key holds 256 random bits, so a fast hash is enough and finding
the record by its hash tells an attacker nothing.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from bitpress.errors import Forbidden, Unauthorized, Unavailable
from bitpress_service.redis_client import PREFIX, reporting_unavailable

SCOPES = ("jobs:read", "jobs:write", "artifacts:read", "webhooks:write", "metrics:read")
LOCAL_TENANT = "local"

_LOCAL = f"{PREFIX}local-key"

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS = 43  # 62**43 > 2**256
_TENANT_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


@dataclass(frozen=True)
class Key:
    """What a key stands for; `id` may be shown and logged, the key itself never."""

    id: str
    tenant: str
    scopes: frozenset[str]


class Keys:
    """The API keys, in Redis: `{bp}:key:<sha256>` is a hash of id, tenant and scopes; `{bp}:keys` the set of all,
    and `{bp}:local-key` the SHA-256 of the embedded default's.

    Every method raises Unavailable when Redis cannot be reached.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client

    @property
    def client(self) -> Redis:
        """For what lives and ends with keys."""
        return self._client

    async def create(self, tenant: str, scopes: Collection[str] = SCOPES) -> str:
        """Make a key and return it; it cannot be read again."""
        # A tenant is part of keys and paths.
        if not tenant or not _TENANT_CHARACTERS.issuperset(tenant):
            raise ValueError(f"expected a tenant of a-z, 0-9, - and _, found {tenant!r}")
        key = _new_key()
        with reporting_unavailable():
            async with self._client.pipeline(transaction=True) as transaction:
                _add(transaction, sha256_of(key), tenant, scopes)
                await transaction.execute()
        return key

    async def lookup(self, key: str) -> Key | None:
        return await self.find(sha256_of(key))

    async def find(self, digest: str) -> Key | None:
        """The key with this SHA-256."""
        with reporting_unavailable():
            record: Any = await self._client.hgetall(f"{PREFIX}key:{digest}")
        return Key(record["id"], record["tenant"], frozenset(record["scopes"].split())) if record else None

    async def exist(self) -> bool:
        """Whether there is any key at all."""
        with reporting_unavailable():
            count: Any = await self._client.scard(f"{PREFIX}keys")
        return bool(count)

    async def ensure_local_key(self, path: Path) -> str:
        """The key of the embedded default: read from the file `path`, or made and written there (mode 0600).

        The one that was in the file before is no key any more. Raises Unavailable when others may read the file.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _read_or_create(path)
        await self._replace_first_key(key)
        return key

    async def admit_first_key(self, path: Path) -> None:
        """Take the key that whoever set up the service wrote into a file; the one before is no key any more.

        Raises Unavailable when there is no key in the file.
        """
        try:
            key = path.read_text().strip()
        except OSError as error:
            raise Unavailable(f"{path}: the first API key cannot be read: {error.strerror}") from error
        if len(key) < _DIGITS:
            raise Unavailable(f"{path}: expected an API key of at least {_DIGITS} characters, found {len(key)}")
        await self._replace_first_key(key)

    async def _replace_first_key(self, key: str) -> None:
        digest = sha256_of(key)

        async def replace(transaction: Pipeline) -> None:
            before: Any = await transaction.get(_LOCAL)
            transaction.multi()  # type: ignore[no-untyped-call]
            if before not in (None, digest):
                transaction.delete(f"{PREFIX}key:{before}")
                transaction.srem(f"{PREFIX}keys", before)
            _add(transaction, digest, LOCAL_TENANT, SCOPES)
            transaction.set(_LOCAL, digest)

        with reporting_unavailable():
            await self._client.transaction(replace, _LOCAL)


def _add(transaction: Pipeline, digest: str, tenant: str, scopes: Collection[str]) -> None:
    record: dict[Any, str] = {"id": f"key_{digest[:12]}", "tenant": tenant, "scopes": " ".join(sorted(scopes))}
    transaction.hset(f"{PREFIX}key:{digest}", mapping=record)
    transaction.sadd(f"{PREFIX}keys", digest)


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
    """Whose key a request carries. Raises Unauthorized when it has none, or one that is not known."""
    credentials = await _bearer(request)
    if credentials is None:
        raise Unauthorized("expected the header 'Authorization: Bearer <API key>'")
    keys: Keys = request.app.state.keys
    key = await keys.lookup(credentials.credentials)
    if key is None:
        raise Unauthorized("this API key is not known")
    return key


async def authenticate(
    request: Request, required: SecurityScopes, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Key:
    """The caller of a KeyedRoute, for `Security(authenticate, scopes=[...])`. Raises Forbidden for a missing scope."""
    key: Key = request.state.key
    if missing := [scope for scope in required.scopes if scope not in key.scopes]:
        raise Forbidden(f"API key {key.id} lacks the scope {missing[0]}")
    return key


def _new_key() -> str:
    number = int.from_bytes(secrets.token_bytes(32))
    digits = ""
    for _ in range(_DIGITS):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return f"bp_{digits}"


def _read_or_create(path: Path) -> str:
    """Whoever links its own finished file first wins, so that no process ever reads half a key."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_new_key() + "\n")
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Unavailable(f"{path} may be read by others; remove it for a new key, or chmod 600 it") from None
    finally:
        draft.unlink()
    return path.read_text().strip()


def sha256_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
