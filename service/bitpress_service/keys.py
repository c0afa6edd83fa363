"""API keys in Redis: made, found by their SHA-256, limited in what they may ask a second, revoked.

Only a key's SHA-256 is stored. A key holds 256 random bits, so a fast hash is enough and finding
the record by its hash tells an attacker nothing. Its last characters are a checksum: one that was not
copied whole is told from one that is not known, and scanners for secrets have something to look for.
"""

import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from bitpress.errors import NotFound, Unavailable
from bitpress.keys import SCOPES, USER_SCOPES, IssuedKey, KeyRecord, KeyRequest
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import Scripts, pairs, time_of

LOCAL_TENANT = "local"

_LOCAL = f"{PREFIX}local-key"
_ALL = f"{PREFIX}key-ids"

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS, _CHECK_DIGITS = 43, 6  # 62**43 > 2**256, 62**6 > 2**32


@dataclass(frozen=True)
class Key:
    """What a key stands for; `id` may be shown and logged, the key itself never."""

    id: str
    tenant: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class Rate:
    """What a key may ask: so many requests a second in the long run, `burst` of them at once. 0: no limit."""

    per_second: float
    burst: int


@dataclass(frozen=True)
class Admission:
    """A caller, and what is left of the rate: requests at once, seconds until another one."""

    key: Key
    remaining: int
    wait_seconds: float


class Keys(Scripts):
    """The API keys: `{bp}:key:<sha256>` is a hash, `{bp}:key-ids` the hash of all ids with their SHA-256, and
    `{bp}:local-key` the SHA-256 of the embedded default's.

    Every method raises Unavailable when Redis cannot be reached.
    """

    @property
    def client(self) -> Redis:
        """For what lives and ends with keys."""
        return self._client

    async def create(self, tenant: str, scopes: Collection[str] = USER_SCOPES) -> str:
        """Make a key that does not expire, and return it."""
        return (await self.issue(KeyRequest.model_validate({"tenant": tenant, "scopes": tuple(scopes)}))).key

    async def issue(self, request: KeyRequest) -> IssuedKey:
        """Make a key; what is returned is the only time that it can be read."""
        key = _new_key()
        fields = await self._add(sha256_of(key), request)
        return IssuedKey(**dict(_record_of(pairs(fields))), key=key)

    async def listed(self) -> Sequence[KeyRecord]:
        """All keys of all tenants, the oldest first, without those that have expired."""
        with reporting_unavailable():
            digests: Any = await self._client.hvals(_ALL)
        records = [await self._found(digest) for digest in digests]
        return sorted(filter(None, records), key=lambda record: (record.created_at, record.id))

    async def get(self, key_id: str) -> KeyRecord:
        """Raises NotFound."""
        with reporting_unavailable():
            digest: Any = await self._client.hget(_ALL, key_id)
        if digest is None or (record := await self._found(digest)) is None:
            raise NotFound(f"no key {key_id!r}")
        return record

    async def revoke(self, key_id: str) -> None:
        """From here on the key is not known. Raises NotFound."""
        if await self._run("revoke_key", key_id) == "missing":
            raise NotFound(f"no key {key_id!r}")

    async def admit(self, key: str, rate: Rate) -> Admission | None:
        """Find who calls and charge one request. None when the key is not known, any more or yet."""
        reply = await self._run("admit", sha256_of(key), str(rate.per_second), rate.burst)
        if reply is None:
            return None
        key_id, tenant, scopes, remaining, wait_ms = reply
        return Admission(Key(key_id, tenant, frozenset(scopes.split())), remaining, wait_ms / 1000)

    async def lookup(self, key: str) -> Key | None:
        return await self.find(sha256_of(key))

    async def find(self, digest: str) -> Key | None:
        """The key with this SHA-256."""
        record = await self._found(digest)
        return Key(record.id, record.tenant, frozenset(record.scopes)) if record else None

    async def exist(self) -> bool:
        """Whether there is any key at all."""
        with reporting_unavailable():
            count: Any = await self._client.hlen(_ALL)
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
        with reporting_unavailable():
            before: Any = await self._client.getset(_LOCAL, digest)
        if before not in (None, digest):
            await self._run("revoke_key", _id_of(before))
        await self._add(digest, KeyRequest(tenant=LOCAL_TENANT, name="the first key", scopes=SCOPES))

    async def _add(self, digest: str, request: KeyRequest) -> Any:
        expires_at = round(request.expires_at.timestamp() * 1000) if request.expires_at else ""
        scopes = " ".join(sorted(set(request.scopes)))
        return await self._run("add_key", digest, _id_of(digest), request.tenant, scopes, request.name, expires_at)

    async def _found(self, digest: str) -> KeyRecord | None:
        fields = await self._run("read_key", digest)
        return _record_of(pairs(fields)) if fields else None


def _record_of(fields: Mapping[str, str]) -> KeyRecord:
    times = {name: time_of(fields[name]) for name in ("created_at", "expires_at", "last_used_at") if fields.get(name)}
    return KeyRecord.model_validate(
        {name: fields[name] for name in ("id", "tenant", "name")} | {"scopes": fields["scopes"].split()} | times
    )


def _id_of(digest: str) -> str:
    return f"key_{digest[:12]}"


def _new_key() -> str:
    digits = _base62(int.from_bytes(secrets.token_bytes(32)), _DIGITS)
    return f"bp_{digits}{_checksum(digits)}"


def is_mistyped(key: str) -> bool:
    """Whether a key of our format has a checksum that is not its own."""
    digits, check = key[3 : 3 + _DIGITS], key[3 + _DIGITS :]
    return key.startswith("bp_") and len(check) == _CHECK_DIGITS and _checksum(digits) != check


def _checksum(digits: str) -> str:
    return _base62(zlib.crc32(digits.encode()), _CHECK_DIGITS)


def _base62(number: int, num_digits: int) -> str:
    digits = ""
    for _ in range(num_digits):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


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
