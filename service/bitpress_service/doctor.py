"""What is wrong on the machine of a service, and how to mend it: its directory, its Redis, its storage, its Ray.

`bitpress doctor` shows it beside what a client sees. Nothing is started, and nothing is left behind.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from redis.asyncio import Redis

from bitpress.doctor import Check
from bitpress.errors import StoreError, Unavailable
from bitpress_service import embedded_redis
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.metrics import StoreMetrics
from bitpress_service.redis_client import connect, reporting_unavailable
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings

MIN_FREE_BYTES = 2**30
OLDEST_REDIS = (6, 2)


async def examine(settings: Settings) -> list[Check]:
    """Look at everything that the settings name; what is not set up here is left out."""
    checks = [*_disk(settings), *_ray(os.environ)]
    url = settings.redis_url or embedded_redis.find(settings.redis_dir)
    if url is None:
        mend = "Start the service: `bitpress up`; or set BITPRESS_REDIS_URL."
        checks.append(Check.bad("redis", f"no server runs in {settings.redis_dir}", mend))
    else:
        checks += [check async for check in _redis(url)]
    return [*checks, await asyncio.to_thread(_storage, settings)]


def _disk(settings: Settings) -> Iterator[Check]:
    """Room where the service writes on this machine."""
    places = {"state": settings.state_dir}
    if settings.artifacts_url.startswith("file://"):
        places["artifacts"] = Path(unquote(settings.artifacts_url.removeprefix("file://")))
    for name, path in places.items():
        if not path.is_dir():
            mend = "It is made when the service starts; BITPRESS_STATE_DIR and BITPRESS_STORAGE_URL say where."
            yield Check.bad(f"disk, {name}", f"{path} is not there", mend, "warning")
            continue
        free = shutil.disk_usage(path).free
        found = f"{path}: {free / 2**30:.1f} GiB free"
        if not os.access(path, os.W_OK | os.X_OK):
            mend = "Give the directory to the user that the service runs as."
            yield Check.bad(f"disk, {name}", f"{path} may not be written to", mend)
        elif free < MIN_FREE_BYTES:
            mend = "Make room: `bitpress rm` removes jobs with their artifacts."
            yield Check.bad(f"disk, {name}", found, mend)
        else:
            yield Check.good(f"disk, {name}", found)


def _ray(environment: Mapping[str, str]) -> Iterator[Check]:
    address = environment.get("RAY_ADDRESS")
    if not address:
        return
    has_token = bool(environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"))
    if environment.get("RAY_AUTH_MODE") == "token" and has_token:
        yield Check.good("ray", f"{address} is asked with a token")
    else:
        mend = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every host: without it anybody may run code there."
        yield Check.bad("ray", f"{address} is used without a token", mend)


async def _redis(url: str) -> AsyncIterator[Check]:
    client = connect(url)
    try:
        with reporting_unavailable():
            facts: Mapping[str, str | int] = await client.info()
        yield Check.good("redis", f"version {facts['redis_version']} answers")
        for check in _redis_settings(facts):
            yield check
        yield await _scripts(client)
    except Unavailable as error:
        mend = "Start Redis, or correct BITPRESS_REDIS_URL; redis.log in the state directory tells of the embedded one."
        yield Check.bad("redis", error.message, mend)
    finally:
        await client.aclose()


def _redis_settings(facts: Mapping[str, str | int]) -> Iterator[Check]:
    """What Redis must be set to, by INFO: CONFIG is not allowed to the service."""
    version = tuple(int(part) for part in str(facts["redis_version"]).split(".")[:2])
    if version < OLDEST_REDIS:
        yield Check.bad("redis version", str(facts["redis_version"]), "Install 6.2 or newer.")
    if (policy := facts["maxmemory_policy"]) != "noeviction":
        mend = "Set maxmemory-policy noeviction: otherwise jobs are dropped when memory is short."
        yield Check.bad("redis memory", f"maxmemory-policy is {policy}", mend)
    used, most = int(facts["used_memory"]), int(facts["maxmemory"])
    if most and used > 0.9 * most:
        mend = "Raise maxmemory, or remove old jobs: `bitpress rm`."
        found = f"{used / 2**20:.0f} of {most / 2**20:.0f} MiB are used"
        yield Check.bad("redis memory", found, mend)
    if not facts["aof_enabled"]:
        mend = "Set appendonly yes: otherwise a restart loses jobs."
        yield Check.bad("redis log", "writes are not logged", mend)
    elif facts["aof_last_write_status"] != "ok":
        mend = "Look at the disk of Redis: it is full, or cannot be written."
        yield Check.bad("redis log", "the last write was not logged", mend)
    else:
        yield Check.good("redis log", "every write is logged")


async def _scripts(client: Redis) -> Check:
    """Whether our scripts may run: an ACL may be too narrow."""
    try:
        await RedisJobStore(client).cluster()
        await StoreMetrics(client).read()
    except Exception as error:  # whatever it is, it is the finding
        mend = "Give the user of the service the rights in deploy/redis: deploy/README.md."
        return Check.bad("redis rights", str(error), mend)
    return Check.good("redis rights", "the scripts run")


def _storage(settings: Settings) -> Check:
    """Write, read and remove an object."""
    url, prefix, data = settings.artifacts_url, f"doctor-{secrets.token_hex(8)}/", b"bitpress"
    name = "storage"
    if url.startswith("file://") and not Path(unquote(url.removeprefix("file://"))).is_dir():
        return Check(name=name, state="skipped", found=f"{url} is not there yet")
    try:
        store = ArtifactStore.from_url(url)
        store.put_bytes(f"{prefix}probe", data)
        found = store.get_bytes(f"{prefix}probe")
        store.remove(prefix)
    except StoreError as error:
        mend = "Correct BITPRESS_STORAGE_URL and the credentials, or make room."
        return Check.bad(name, error.message, mend)
    if found != data:
        mend = "Do not use this storage: what is read is not what was written."
        return Check.bad(name, f"{url}: {found!r} was read", mend)
    return Check.good(name, f"{url}: written, read and removed")
