"""How much one API process carries: real Redis, real uvicorn, real sockets.

Submitting and looking at jobs (requests a second, latency), a thousand followers of ten jobs (delay from the
write of an event to its arrival), and lists from a store of a hundred thousand jobs.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import redis
from http_connection import Connection
from machine import save

from bitpress.jobs import parse_spec
from bitpress_service import embedded_redis
from bitpress_service.jobstore import Claim
from bitpress_service.redis_jobstore import RedisJobStore

T = TypeVar("T")
REQUESTS = 8000
CONNECTIONS = 8
FOLLOWERS, FOLLOWED_JOBS, EVENTS = 1000, 10, 20
STORED_JOBS = 100_000
LISTS = 200
BATCH = 200
LOAD_BEFORE = os.getloadavg()[0]  # of others: the figures are theirs, too

SPEC = {
    "model": {"uri": "org/model"},
    "method": {"kind": "spqr", "bits": 3},
    "calibration": {"dataset": "c4"},
    "labels": {"team": "nlp"},
}


@dataclass(frozen=True)
class Service:
    """A running API process and its Redis."""

    port: int
    key: str
    redis_url: str
    pid: int

    def cpu_seconds(self) -> float:
        """What the API process has computed so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connection(self) -> Connection:
        return Connection("127.0.0.1", self.port, {"Authorization": f"Bearer {self.key}"})


@contextmanager
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as probe:
        state, port = Path(directory), probe.getsockname()[1]
        probe.close()
        url = embedded_redis.start(state / "redis")
        environment = {
            "BITPRESS_STATE_DIR": directory, "BITPRESS_REDIS_URL": url, "BITPRESS_PORT": str(port),
            "BITPRESS_STREAMS_PER_KEY": str(FOLLOWERS), "BITPRESS_REQUESTS_PER_SECOND": "0",
            "BITPRESS_WAITING_JOBS_PER_TENANT": str(STORED_JOBS),
        }  # fmt: skip
        with (state / "log").open("wb") as log:
            command = [sys.executable, "-m", "bitpress_service"]
            process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            asyncio.run(answers(port))
            yield Service(port, (state / "api-key").read_text().strip(), url, process.pid)
        finally:
            process.terminate()
            process.wait()
            embedded_redis.stop(state / "redis")


async def answers(port: int) -> None:
    while True:
        try:
            async with Connection("127.0.0.1", port) as connection:
                await connection.request("GET", "/readyz")
                return
        except OSError:
            await asyncio.sleep(0.1)


async def submit_and_get(service: Service) -> dict[str, float]:
    """Eight clients, each of which submits a job and looks at it, again and again."""
    seconds: list[float] = []

    async def client() -> None:
        async with service.connection() as connection:
            while len(seconds) < REQUESTS:
                job = await timed(seconds, connection.request("POST", "/v1/jobs", SPEC))
                await timed(seconds, connection.request("GET", f"/v1/jobs/{job['id']}"))

    begin, cpu = time.perf_counter(), service.cpu_seconds()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return {
        "requests_per_second": len(seconds) / (time.perf_counter() - begin),
        "api_cpu_ms_per_request": 1e3 * (service.cpu_seconds() - cpu) / len(seconds),
        **latency(seconds),
    }


async def timed(seconds: list[float], answer: Awaitable[T]) -> T:
    begin = time.perf_counter()
    result = await answer
    seconds.append(time.perf_counter() - begin)
    return result


def latency(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=100)
    return {"median_ms": 1e3 * median(seconds), "p99_ms": 1e3 * cuts[98]}


async def follow(service: Service) -> dict[str, float]:
    """A hundred followers of each of ten jobs, each of which sends an event every second."""
    store = RedisJobStore.from_url(service.redis_url)
    claims = [await running_job(store) for _ in range(FOLLOWED_JOBS)]
    delays: list[float] = []
    following: list[str] = []

    async def follower(job_id: str) -> None:
        async with service.connection() as connection:
            async for event in connection.events(f"/v1/jobs/{job_id}/events"):
                if event["type"] == "log":  # which says when it was written
                    delays.append(time.perf_counter() - float(event["message"]))
                elif event["state"] == "running":
                    following.append(job_id)

    followers = [asyncio.create_task(follower(claims[n % FOLLOWED_JOBS].job.id)) for n in range(FOLLOWERS)]
    async with service.connection() as connection:
        while len(following) < FOLLOWERS:
            await asyncio.sleep(0.2)
        readers = num_readers(service)
        for _ in range(EVENTS):
            for claim in claims:
                await store.record(claim.job.id, claim.fence, log=str(time.perf_counter()))
                await asyncio.sleep(1 / FOLLOWED_JOBS)
        for claim in claims:
            await connection.request("POST", f"/v1/jobs/{claim.job.id}/cancel")
            await store.finish(claim.job.id, claim.fence, state="cancelled")
    await asyncio.gather(*followers)
    await store.aclose()
    if len(delays) != FOLLOWERS * EVENTS:
        raise RuntimeError(f"{FOLLOWERS * EVENTS} events were sent, {len(delays)} arrived")
    return {"followers": FOLLOWERS, "redis_connections_that_read": readers, **latency(delays)}


async def running_job(store: RedisJobStore) -> Claim:
    """A new job that is claimed; older ones wait behind it."""
    job, _ = await store.create("local", parse_spec(SPEC), priority=100)
    claim = await store.claim("bench", 3600)
    if claim is None or claim.job.id != job.id:
        raise RuntimeError("another job was claimed than the one with the highest priority")
    return claim


def num_readers(service: Service) -> int:
    """Connections of Redis whose last command reads event streams."""
    with redis.Redis.from_url(service.redis_url) as client:
        return sum(one["cmd"] == "xread" for one in client.client_list())


async def list_many(service: Service) -> dict[str, float]:
    """The newest jobs, the next page, and those of one state, in a store of a hundred thousand."""
    store = RedisJobStore.from_url(service.redis_url)
    with redis.Redis.from_url(service.redis_url) as client:
        missing = STORED_JOBS - client.zcard("{bp}:jobs:local")
    spec = parse_spec(SPEC)
    for begin in range(0, missing, BATCH):
        await asyncio.gather(*(store.create("local", spec) for _ in range(min(BATCH, missing - begin))))
    await store.aclose()
    seconds: list[float] = []
    async with service.connection() as connection:
        first = await connection.request("GET", "/v1/jobs")
        for path in ("/v1/jobs", f"/v1/jobs?after={first['next_cursor']}", "/v1/jobs?state=queued"):
            for _ in range(LISTS):
                await timed(seconds, connection.request("GET", path))
    return {"stored_jobs": STORED_JOBS, **latency(seconds)}


def main() -> int:
    with service() as running:
        numbers = {part.__name__: asyncio.run(part(running)) for part in (submit_and_get, follow, list_many)}
    save("api", {"load_before": LOAD_BEFORE, **numbers})
    return 0


if __name__ == "__main__":
    sys.exit(main())
