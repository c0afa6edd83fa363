"""The API as it really runs: uvicorn on loopback over a real Redis server and a directory of objects."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from api_process import ApiProcess
from running_api import Api, serving

from bitpress_service import embedded_redis
from bitpress_service.settings import Settings


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = tmp_path_factory.mktemp("redis")
    yield embedded_redis.start(data_dir)
    embedded_redis.stop(data_dir)


@pytest.fixture
def redis_url(_redis: str) -> str:
    """An empty Redis."""
    with redis.Redis.from_url(_redis) as client:
        client.flushall()
    return _redis


@pytest.fixture
async def api(redis_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(Settings(state_dir=tmp_path, redis_url=redis_url)) as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """The API in a process of its own, and its Redis."""
    service = ApiProcess(tmp_path_factory.mktemp("service"))
    service.start()
    yield service
    service.stop()


@pytest.fixture
def environment(service: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command line needs to find that service."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
