"""The job store over Redis. Each state change is one script of `lua/`, hence atomic; `lua/common.lua` lists the keys.

The client repeats a command whose reply was lost, so every script may run twice: `create`, `finish` and
`release` recognize their own earlier run, a repeated block record changes nothing, and a claim that nobody
got the reply of comes back when its lease runs out.
"""

from typing import Self

from bitpress.errors import Unavailable
from bitpress_service.redis_client import connect, reporting_unavailable
from bitpress_service.redis_cluster import RedisCluster
from bitpress_service.redis_plans import RedisPlans
from bitpress_service.redis_requests import RedisRequests
from bitpress_service.redis_work import RedisWork


class RedisJobStore(RedisRequests, RedisWork, RedisCluster, RedisPlans):
    """JobStore over a Redis 6.2 or newer, or a Valkey. Takes ownership of its client."""

    @classmethod
    def from_url(cls, url: str) -> Self:
        return cls(connect(url))

    async def ping(self) -> None:
        with reporting_unavailable():
            memory = await self._client.info("memory")
        if (policy := memory["maxmemory_policy"]) != "noeviction":
            raise Unavailable(f"Redis may drop jobs: maxmemory-policy is {policy}, expected noeviction")

    async def aclose(self) -> None:
        await self._client.aclose()
