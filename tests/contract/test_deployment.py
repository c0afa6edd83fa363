"""The composed service's doors, without containers: Redis by its configuration and ACL, the API by its start script,
S3, all with the secrets that an installation makes. Who comes without one is refused by each.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bucket
import httpx2
import pytest
import redis
from service_helpers import job_spec

from bitpress.keys import KeyRequest
from bitpress_service.keys import Keys
from bitpress_service.redis_client import connect
from bitpress_service.redis_jobstore import RedisJobStore

DEPLOY = Path(__file__).parents[2] / "deploy"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What deploy/make-secrets.sh makes for one installation."""
    script = shutil.copy(DEPLOY / "make-secrets.sh", tmp_path_factory.mktemp("deploy"))
    subprocess.run(["bash", script], check=True, capture_output=True)
    return Path(script).parent / "secrets"


class ComposedRedis:
    """The redis service of docker-compose.yml, on loopback."""

    def __init__(self, binary: str, data: Path, secrets: Path) -> None:
        self.data, self.port = data, free_port()
        configuration = data.with_suffix(".conf")
        text = (DEPLOY / "redis" / "bitpress.conf").read_text("utf-8")
        configuration.write_text(text.replace("dir /data", f"dir {data}"))
        self._command = [binary, str(configuration), "--maxmemory", "100mb", "--aclfile", str(secrets / "redis_acl")]
        self._command += ["--port", str(self.port), "--bind", "127.0.0.1"]
        self.url = (secrets / "redis_url").read_text().replace("@redis:6379", f"@127.0.0.1:{self.port}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.data.mkdir(exist_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while self.asked(b"PING\r\n") is None:
            assert self._process.poll() is None, "the server has ended"
            time.sleep(0.02)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(by)
        self._process.wait()

    def asked(self, line: bytes) -> bytes | None:
        """What a stranger is answered; None when nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port)) as stranger:
                stranger.sendall(line)
                return stranger.recv(200)
        except ConnectionError:
            return None


@pytest.fixture
def composed_redis(redis_binary: str, secrets: Path, tmp_path: Path) -> Iterator[ComposedRedis]:
    server = ComposedRedis(redis_binary, tmp_path / "data", secrets)
    server.start()
    yield server
    server.stop()


def test_redis_lets_nobody_in_without_the_password(composed_redis: ComposedRedis) -> None:
    for line in (b"PING\r\n", b"INFO\r\n", b"KEYS *\r\n", b"CONFIG GET *\r\n"):
        assert (composed_redis.asked(line) or b"").startswith(b"-NOAUTH")
    for line in (b"AUTH guessed\r\n", b"AUTH default guessed\r\n", b"AUTH bitpress guessed\r\n"):
        assert (composed_redis.asked(line) or b"").startswith(b"-WRONGPASS")


async def test_the_services_user_may_do_its_work_and_nothing_beside(composed_redis: ComposedRedis) -> None:
    store = RedisJobStore.from_url(composed_redis.url)
    job, _ = await store.create("acme", job_spec())
    claim = await store.claim("worker", 60)
    assert claim is not None
    await store.record(job.id, claim.fence, log="at work")
    await store.finish(job.id, claim.fence, state="succeeded", files={"manifest.json": "key"})
    await store.ping()
    await store.aclose()
    with redis.Redis.from_url(composed_redis.url) as client:
        for command in ("FLUSHALL", "CONFIG GET *", "KEYS *", "SET other x", "ACL LIST", "SHUTDOWN", "MONITOR"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())


async def test_a_killed_redis_knows_everything_again(composed_redis: ComposedRedis) -> None:
    keys = Keys(connect(composed_redis.url))
    issued = await keys.issue(KeyRequest(tenant="acme"))
    store = RedisJobStore(keys.client)
    job, _ = await store.create("acme", job_spec())
    claim = await store.claim("worker", 60)
    assert claim is not None
    composed_redis.stop(by=signal.SIGKILL)
    composed_redis.start()
    assert await keys.lookup(issued.key) is not None
    assert (await store.get(job.id)).state == "running"
    await store.record(job.id, claim.fence, log="the worker holds it still")
    await store.aclose()


async def test_a_backup_of_redis_is_the_whole_truth(composed_redis: ComposedRedis, tmp_path: Path) -> None:
    store = RedisJobStore.from_url(composed_redis.url)
    done, _ = await store.create("acme", job_spec())
    claim = await store.claim("worker", 60)
    assert claim is not None
    await store.finish(done.id, claim.fence, state="succeeded", files={"manifest.json": "key"})
    waiting, _ = await store.create("acme", job_spec(), idempotency_key="once")
    await store.aclose()

    composed_redis.stop()
    saved = tmp_path / "redis.tar"
    with saved.open("wb") as file:
        subprocess.run(["tar", "-c", "-C", str(composed_redis.data), "appendonlydir"], stdout=file, check=True)
    shutil.rmtree(composed_redis.data)
    composed_redis.data.mkdir()
    subprocess.run(["tar", "-x", "-C", str(composed_redis.data), "-f", str(saved)], check=True)
    composed_redis.start()

    store = RedisJobStore.from_url(composed_redis.url)
    assert (await store.get(done.id)).state == "succeeded"
    same, replayed = await store.create("acme", job_spec(), idempotency_key="once")
    assert (same.id, replayed) == (waiting.id, True)
    again = await store.claim("worker", 60)
    assert again is not None and again.job.id == waiting.id
    await store.aclose()


def test_the_api_of_a_container_asks_everybody_for_a_key(
    composed_redis: ComposedRedis, secrets: Path, tmp_path: Path
) -> None:
    (tmp_path / "redis_url").write_text(composed_redis.url)
    (tmp_path / "served" / "bitpress").mkdir(parents=True)
    url = f"http://127.0.0.1:{free_port()}"
    with bucket.nanio(tmp_path / "served") as storage:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)} | storage.environment()
        for name, secret in (("AWS_ACCESS_KEY_ID", bucket.KEY), ("AWS_SECRET_ACCESS_KEY", bucket.SECRET)):
            (tmp_path / name).write_text(secret)
            environment[f"{name}_FILE"] = str(tmp_path / name)
            del environment[name]
        environment |= {
            "BITPRESS_REDIS_URL_FILE": str(tmp_path / "redis_url"),
            "BITPRESS_STORAGE_URL": "s3://bitpress/artifacts",
            "BITPRESS_STATE_DIR": str(tmp_path / "state"),
            "BITPRESS_FIRST_KEY_FILE": str(secrets / "api_key"),
            "BITPRESS_PORT": url.rpartition(":")[2],
        }
        start = ["sh", str(DEPLOY / "containers" / "with-secrets"), sys.executable, "-P", "-m", "bitpress_service"]
        api = subprocess.Popen(start, env=environment, stderr=subprocess.DEVNULL)
        try:
            check_api(url, api, (secrets / "api_key").read_text())
        finally:
            api.terminate()
            api.wait()


def check_api(url: str, api: subprocess.Popen[bytes], key: str) -> None:
    with httpx2.Client(base_url=url, trust_env=False, timeout=60) as anybody:
        while not is_ready(anybody):
            assert api.poll() is None, "the API has ended"
            time.sleep(0.1)
        with_key = {"Authorization": f"Bearer {key}"}
        described = anybody.get("/openapi.json", headers=with_key).json()["paths"]
        doors = [(method, path) for path, methods in described.items() for method in methods if path.startswith("/v1/")]
        assert len(doors) > 20
        public = {("get", "/v1/methods"), ("get", "/v1/methods/{kind}")}  # parameters of methods, no data of anybody
        for method, path in doors:
            answers = [
                anybody.request(method.upper(), path.format_map(Anything()), headers=headers).status_code
                for headers in ({}, {"Authorization": "Bearer " + "0" * 64})
            ]
            assert answers == [401, 401] or (method, path) in public, (method, path, answers)
        assert anybody.get("/v1/jobs", headers=with_key).status_code == 200


class Anything(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "x"


def is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx2.TransportError:
        return False
