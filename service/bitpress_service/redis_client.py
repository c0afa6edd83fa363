"""How Bitpress speaks to Redis: one way to connect, one prefix, one translation of errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bitpress.errors import Unavailable

# The braces are a hash tag: all keys live on one node, so one script may touch several of them.
PREFIX = "{bp}:"

_CONNECTIONS = 32

# A restart of the server is sat out; a server that stays away is reported within about two seconds.
_RETRY = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries=6)

# These come without a class of their own: a disk that cannot be written, and what a script met in Redis 6.
_REFUSED_WRITE = re.compile(r"(^|-)(MISCONF|OOM|READONLY) ")


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://` URLs; connects with the first command."""
    # More commands at once than connections wait for their turn; redis-py's default pool would refuse them.
    pool = BlockingConnectionPool.from_url(
        url, max_connections=_CONNECTIONS, timeout=10, decode_responses=True, retry=_RETRY, health_check_interval=30
    )
    return Redis.from_pool(pool)


@contextmanager
def reporting_unavailable() -> Iterator[None]:
    """Turn a Redis that is down, full, read-only or unable to write to its disk into Unavailable."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError) as error:
        raise Unavailable(f"Redis: {error}") from error
    except ResponseError as error:
        if _REFUSED_WRITE.search(str(error)):
            raise Unavailable(f"Redis: {error}") from error
        raise
