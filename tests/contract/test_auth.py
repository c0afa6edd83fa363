"""API keys over a real Redis: found by their hash, never stored, one for the embedded default."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from bitpress.errors import Unavailable
from bitpress_service.auth import SCOPES, Keys
from bitpress_service.redis_client import connect


@pytest.fixture
async def keys(redis_url: str) -> AsyncIterator[Keys]:
    client = connect(redis_url)
    yield Keys(client)
    await client.aclose()


async def test_a_key_is_found_and_stored_nowhere(keys: Keys, redis_url: str) -> None:
    assert not await keys.exist()
    plain = await keys.create("acme", ("jobs:read",))
    assert plain.startswith("bp_") and len(plain) == 46 and plain.isascii() and plain[3:].isalnum()
    key = await keys.lookup(plain)
    assert key is not None and (key.tenant, key.scopes) == ("acme", frozenset({"jobs:read"}))
    assert await keys.exist() and await keys.lookup(plain[:-1]) is None and await keys.lookup("") is None
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        held = [client.hgetall(name) for name in client.scan_iter("{bp}:key:*")]
        assert len(held) == 1 and plain not in str(held) and plain not in str(client.keys())


async def test_keys_differ(keys: Keys) -> None:
    assert len({await keys.create("acme") for _ in range(100)}) == 100


@pytest.mark.parametrize("tenant", ["", "Acme", "a/b", "a:b", "..", "a b"])
async def test_a_tenant_is_a_plain_word(keys: Keys, tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        await keys.create(tenant)


async def test_the_local_key_is_made_once_for_its_user_alone(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "state" / "api-key"
    plain = await asyncio.gather(*(keys.ensure_local_key(path) for _ in range(5)))
    assert set(plain) == {path.read_text().strip()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(path.parent.iterdir()) == [path]
    key = await keys.lookup(plain[0])
    assert key is not None and (key.tenant, key.scopes) == ("local", frozenset(SCOPES))


async def test_the_local_key_is_registered_again_with_an_empty_redis(
    keys: Keys, redis_url: str, tmp_path: Path
) -> None:
    plain = await keys.ensure_local_key(tmp_path / "api-key")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert await keys.ensure_local_key(tmp_path / "api-key") == plain
    assert await keys.lookup(plain) is not None


async def test_a_local_key_that_was_removed_is_no_key_any_more(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    other = await keys.create("local")
    removed = await keys.ensure_local_key(path)
    path.unlink()
    present = await asyncio.gather(*(keys.ensure_local_key(path) for _ in range(5)))
    assert removed not in present and await keys.lookup(removed) is None
    assert await keys.lookup(present[0]) is not None and await keys.lookup(other) is not None


async def test_a_key_file_that_others_may_read_is_refused(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    await keys.ensure_local_key(path)
    path.chmod(0o644)
    with pytest.raises(Unavailable, match="chmod 600"):
        await keys.ensure_local_key(path)
