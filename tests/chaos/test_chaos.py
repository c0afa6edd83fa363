"""Two hundred jobs, half of them in sweeps, all submitted three times, while everything that can die dies; about two
minutes.

The API is killed and stopped amid the submits, dispatchers are killed and frozen, Redis is killed and started again,
attempts crash. The API, Redis, the store, the dispatcher and the driver's frame are the real ones.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from api_process import ApiProcess
from service_helpers import job_spec
from zygote import BLOCKS, LEASE_SECONDS

from bitpress.client import Client
from bitpress.errors import Unavailable
from bitpress.jobs import JobState, StateEvent
from bitpress.sweeps import SweepSpec
from bitpress_service import embedded_redis

pytestmark = pytest.mark.slow

SINGLE, SWEEPS, MEMBERS = 100, 25, 4
JOBS, SUBMITS, DISPATCHERS = SINGLE + SWEEPS * MEMBERS, 3, 5
CHAOS_SECONDS = 45.0
PATIENCE_SECONDS = 1200.0  # for a machine with much else to do; what hangs, hangs longer


class Zygote:
    """The process that everything else is forked from; see zygote.py."""

    def __init__(self, directory: Path, redis_url: str, seed: int) -> None:
        self._redis_url = redis_url
        self._address = directory / "zygote.sock"
        self.journal = directory / "journal"
        self.dispatchers: list[int] = []
        support = os.pathsep.join(path for path in sys.path if path)
        self.log = directory / "dispatchers.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py")), str(directory), str(seed)],
                env=os.environ | {"PYTHONPATH": support}, stderr=log,
            )  # fmt: skip

    def start_dispatcher(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            while True:
                assert self._process.poll() is None
                try:
                    connection.connect(str(self._address))
                    break
                except OSError:
                    time.sleep(0.1)
            url = self._redis_url.encode()
            connection.sendall(b"dispatch %d\n%s" % (len(url), url))
            self.dispatchers.append(int(connection.recv(20)))

    def kill_dispatcher(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.dispatchers.remove(pid)

    def ended(self) -> list[int]:
        """Dispatchers that nobody has killed and that are gone all the same."""
        return [pid for pid in self.dispatchers if not Path("/proc", str(pid)).exists()]

    def stop(self) -> None:
        for pid in set(self.dispatchers) - set(self.ended()):
            os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def zygote(api: ApiProcess, tmp_path: Path, randomly_seed: int) -> Iterator[Zygote]:
    one = Zygote(tmp_path, api.redis_url, randomly_seed)
    yield one
    one.stop()


@pytest.fixture
def randomly_seed(request: pytest.FixtureRequest) -> int:
    """The seed that pytest-randomly shows, so that what went wrong can be asked for again."""
    return int(request.config.getoption("randomly_seed", 1))


def submit(api: ApiProcess, number: int) -> tuple[str, ...]:
    """A job, or one of the SWEEPS, until it is acknowledged, as a client that does not give up would."""
    spec = job_spec(number=str(number))
    methods = [spec.method.model_copy(update={"bits": 2 + place}) for place in range(MEMBERS)]
    while True:
        try:
            with Client(api.url, api.key) as client:
                if number >= SWEEPS:
                    return (client.submit(spec, f"key {number}").id,)
                sweep = SweepSpec.model_validate(spec.model_dump() | {"method": methods})
                return tuple(job.id for job in client.submit_sweep(sweep, f"key {number}"))
        except Unavailable:
            time.sleep(0.2)


def submit_storm(api: ApiProcess) -> dict[int, set[tuple[str, ...]]]:
    """The ids that were acknowledged for each key, while the API is killed and told to stop."""
    numbers = [number for number in range(SINGLE + SWEEPS) for _ in range(SUBMITS)]
    random.shuffle(numbers)
    with ThreadPoolExecutor(12) as pool:
        pending = [(number, pool.submit(submit, api, number)) for number in numbers]
        for end in (api.kill, api.terminate):
            time.sleep(1.0)
            end()
            api.start()
        acknowledged: dict[int, set[tuple[str, ...]]] = {}
        for number, answer in pending:
            acknowledged.setdefault(number, set()).add(answer.result())
    return acknowledged


def make_chaos(api: ApiProcess, zygote: Zygote, over: threading.Event) -> dict[str, int]:
    """Kill and freeze, until everything is done or enough was done."""
    done = {"killed": 0, "frozen": 0, "redis": 0}
    deadline = time.monotonic() + CHAOS_SECONDS
    while time.monotonic() < deadline and not over.wait(random.uniform(0.5, 1.5)) and not zygote.ended():
        victim = random.choice(zygote.dispatchers)
        match random.randrange(3):
            case 0:
                zygote.kill_dispatcher(victim)
                zygote.start_dispatcher()
                done["killed"] += 1
            case 1:
                os.kill(victim, signal.SIGSTOP)
                over.wait(1.5 * LEASE_SECONDS)
                os.kill(victim, signal.SIGCONT)
                done["frozen"] += 1
            case _:
                data = api.state / "redis"
                os.kill(int((data / embedded_redis.PIDFILE).read_text()), signal.SIGKILL)
                embedded_redis.start(data)
                done["redis"] += 1
    return done


def num_ended(client: redis.Redis) -> int:
    """What Redis says, as soon as it is there."""
    states = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
    while True:
        try:
            return sum(client.zcard(f"{{bp}}:jobs:local:{state}") for state in states)
        except redis.ConnectionError:
            time.sleep(0.1)


def test_every_job_is_done_once_whatever_dies(api: ApiProcess, zygote: Zygote) -> None:
    acknowledged = submit_storm(api)
    assert {len(ids) for ids in acknowledged.values()} == {1}
    job_ids = {job_id for answers in acknowledged.values() for ids in answers for job_id in ids}
    assert len(job_ids) == JOBS

    for _ in range(DISPATCHERS):
        zygote.start_dispatcher()
    over = threading.Event()
    deadline = time.monotonic() + PATIENCE_SECONDS
    with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(api.redis_url, decode_responses=True) as client:
        chaos = pool.submit(make_chaos, api, zygote, over)
        try:
            while (ended := num_ended(client)) < JOBS:
                assert time.monotonic() < deadline, f"{ended} of {JOBS} jobs have ended; {chaos}"
                time.sleep(0.5)
        finally:
            over.set()
        assert sum(chaos.result().values()) > 3, chaos.result()
        assert zygote.ended() == [], zygote.log.read_text()[-5000:]
        assert client.zcard("{bp}:jobs:local") == JOBS
        assert not client.exists("{bp}:queue", "{bp}:delayed", "{bp}:leases")
    with Client(api.url, api.key) as http:
        for job_id in job_ids:
            ends = [event.state for event in http.history(job_id) if isinstance(event, StateEvent)]
            assert [state for state in ends if state.terminal] == [JobState.SUCCEEDED], ends
    check_blocks(api, zygote, job_ids)


def check_blocks(api: ApiProcess, zygote: Zygote, job_ids: set[str]) -> None:
    """What was acknowledged is there, and was not computed again by a later attempt."""
    lines = [line.split() for line in zygote.journal.read_text().splitlines()]
    recorded: dict[tuple[str, int], int] = {}
    for what, job_id, index, fence in lines:
        if what == "recorded":
            assert (job_id, int(index)) not in recorded, "a block was recorded twice"
            recorded[job_id, int(index)] = int(fence)
    for what, job_id, index, fence in lines:
        if what == "computed":
            assert int(fence) <= recorded.get((job_id, int(index)), sys.maxsize), "a block was computed without need"
    worker = api.worker()
    for job_id in job_ids:
        blocks = worker.blocks(job_id)
        assert set(blocks) == set(range(BLOCKS))
        for index, block in blocks.items():
            fence = recorded.get((job_id, index))
            assert fence is None or block.key == f"{fence}/{index}", "an acknowledged block was lost"
