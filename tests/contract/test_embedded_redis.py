"""The embedded server: one per directory, outliving whoever started it, losing nothing it acknowledged."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from bitpress.errors import Unavailable
from bitpress_service import embedded_redis

START = (
    "import sys, pathlib; from bitpress_service import embedded_redis as e; print(e.start(pathlib.Path(sys.argv[1])))"
)


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def kill_server(url: str) -> None:
    os.kill(pid_of(url), signal.SIGKILL)


def test_a_live_server_is_used_again_and_stop_ends_it(own_redis_dir: Path) -> None:
    url = embedded_redis.start(own_redis_dir)
    assert embedded_redis.start(own_redis_dir) == url
    embedded_redis.stop(own_redis_dir)
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    embedded_redis.stop(own_redis_dir)


def test_processes_that_race_get_one_server(own_redis_dir: Path) -> None:
    command = [sys.executable, "-c", START, str(own_redis_dir)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    urls = {racer.communicate()[0].strip() for racer in racers}
    assert urls == {embedded_redis.start(own_redis_dir)}
    assert int((own_redis_dir / embedded_redis.PIDFILE).read_text()) == pid_of(urls.pop())


def test_kill_9_loses_no_acknowledged_write(own_redis_dir: Path) -> None:
    url = embedded_redis.start(own_redis_dir)
    with redis.Redis.from_url(url) as client:
        for n in range(1000):
            client.rpush("log", n)
        kill_server(url)
    assert embedded_redis.start(own_redis_dir) == url
    with redis.Redis.from_url(url) as client:
        assert client.lrange("log", 0, -1) == [str(n).encode() for n in range(1000)]


def test_data_outlives_a_clean_stop(own_redis_dir: Path) -> None:
    with redis.Redis.from_url(embedded_redis.start(own_redis_dir)) as client:
        client.set("key", "value")
    embedded_redis.stop(own_redis_dir)
    with redis.Redis.from_url(embedded_redis.start(own_redis_dir)) as client:
        assert client.get("key") == b"value"


def test_nobody_else_can_reach_it(own_redis_dir: Path) -> None:
    url = embedded_redis.start(own_redis_dir)
    assert own_redis_dir.stat().st_mode & 0o077 == 0
    with redis.Redis.from_url(url) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_a_path_too_long_for_a_socket_still_works(
    redis_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(embedded_redis.BINARY_VARIABLE, redis_binary)
    data_dir = tmp_path / ("deep" * 20) / "with a space"
    url = embedded_redis.start(data_dir)
    with redis.Redis.from_url(url) as client:
        assert client.config_get("dir") == {"dir": str(data_dir)}
        path = Path(client.config_get("unixsocket")["unixsocket"])
    assert path.parent.stat().st_mode & 0o077 == 0
    embedded_redis.stop(data_dir)
    assert not path.exists()


def test_a_binary_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for binary, expected in ((str(tmp_path / "absent"), "absent"), ("/bin/false", "/bin/false does not start")):
        monkeypatch.setenv(embedded_redis.BINARY_VARIABLE, binary)
        with pytest.raises(Unavailable, match=expected):
            embedded_redis.start(tmp_path / "data")


def test_a_stale_socket_is_no_server(own_redis_dir: Path) -> None:
    own_redis_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(own_redis_dir / "redis.sock"))
    with redis.Redis.from_url(embedded_redis.start(own_redis_dir)) as client:
        assert client.ping()
