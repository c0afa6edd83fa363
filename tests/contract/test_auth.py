"""API keys over a real Redis: found by their hash, never stored, one for the embedded default."""

import asyncio
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from bitpress.errors import NotFound, Unavailable
from bitpress.keys import SCOPES, KeyRequest
from bitpress_service.keys import Keys, Rate, is_mistyped
from bitpress_service.redis_client import connect


@pytest.fixture
async def keys(redis_url: str) -> AsyncIterator[Keys]:
    client = connect(redis_url)
    yield Keys(client)
    await client.aclose()


async def test_a_key_is_found_and_stored_nowhere(keys: Keys, redis_url: str) -> None:
    assert not await keys.exist()
    plain = await keys.create("acme", ("jobs:read",))
    assert plain.startswith("bp_") and len(plain) == 52 and plain.isascii() and plain[3:].isalnum()
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


async def test_a_key_is_listed_with_its_last_use_and_revoked(keys: Keys) -> None:
    first = await keys.issue(KeyRequest(tenant="acme", name="CI"))
    await asyncio.sleep(0.002)  # times are those of milliseconds
    second = await keys.issue(KeyRequest(tenant="other", scopes=("jobs:read",)))
    assert [record.id for record in await keys.listed()] == [first.id, second.id]
    assert (await keys.listed())[0].last_used_at is None
    await keys.admit(first.key, Rate(0, 1))
    listed = (await keys.listed())[0]
    assert listed.last_used_at is not None and listed.last_used_at >= listed.created_at
    assert listed.model_dump(exclude={"last_used_at"}) == first.model_dump(exclude={"last_used_at", "key"})
    assert await keys.find("0" * 64) is None
    await keys.revoke(first.id)
    assert await keys.lookup(first.key) is None and await keys.admit(first.key, Rate(0, 1)) is None
    assert [record.id for record in await keys.listed()] == [second.id]
    with pytest.raises(NotFound):
        await keys.revoke(first.id)


async def test_a_key_expires(keys: Keys) -> None:
    now = datetime.now(UTC)
    late = await keys.issue(KeyRequest(tenant="acme", expires_at=now + timedelta(hours=1)))
    assert late.expires_at is not None and abs(late.expires_at - now - timedelta(hours=1)) < timedelta(seconds=1)
    soon = await keys.issue(KeyRequest(tenant="acme", expires_at=datetime.now(UTC) + timedelta(seconds=0.2)))
    await asyncio.sleep(0.3)
    assert await keys.lookup(soon.key) is None and await keys.admit(soon.key, Rate(0, 1)) is None
    assert [record.id for record in await keys.listed()] == [late.id]
    with pytest.raises(ValueError, match="still to come"):
        KeyRequest(tenant="acme", expires_at=now)


async def test_a_rate_is_kept_by_each_key_for_itself(keys: Keys) -> None:
    first, second = await keys.create("acme"), await keys.create("acme")
    rate = Rate(per_second=0.001, burst=3)
    admitted = [await keys.admit(first, rate) for _ in range(4)]
    assert [(caller.remaining, caller.wait_seconds > 0) for caller in admitted if caller] == [
        (2, False), (1, False), (0, False), (0, True),
    ]  # fmt: skip
    assert admitted[-1] is not None and 900 < admitted[-1].wait_seconds <= 1000
    other = await keys.admit(second, rate)
    assert other is not None and other.wait_seconds == 0
    await asyncio.sleep(0.01)  # a bucket is filled by whole milliseconds
    refilled = await keys.admit(first, Rate(per_second=1e6, burst=3))
    assert refilled is not None and refilled.wait_seconds == 0


async def test_a_key_that_was_not_copied_whole_is_told_from_one_that_is_not_known(keys: Keys) -> None:
    plain = await keys.create("acme")
    swapped = plain[:-1] + ("0" if plain[-1] != "0" else "1")
    assert not is_mistyped(plain) and is_mistyped(swapped)
    assert not is_mistyped("bp_wrong") and not is_mistyped("another kind of token altogether, as long as one of ours")
