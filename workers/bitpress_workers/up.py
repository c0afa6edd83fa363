"""`bitpress up`: the whole service on one machine, with nothing to install beside Python packages.

Three processes under this one: a real Redis-protocol server on a Unix socket, the API on loopback
and a dispatcher. Ends all of them when it is told to end, or when one of them ends by itself.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from urllib.error import URLError
from urllib.request import urlopen

from bitpress.errors import Unavailable
from bitpress_service import embedded_redis
from bitpress_service.settings import Settings

STOP_SECONDS = 20.0
START_SECONDS = 60.0


def up(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM. Returns 0, or 1 when a process ended by itself."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    redis_url = embedded_redis.start(settings.redis_dir)
    environment = os.environ | {"BITPRESS_REDIS_URL": redis_url, "BITPRESS_STATE_DIR": str(settings.state_dir)}
    try:
        with (
            _child("bitpress_service", environment) as api,
            _child("bitpress_workers", environment, "dispatch") as dispatcher,
        ):
            url = f"http://{settings.host}:{settings.port}"
            _wait_ready(f"{url}/readyz", api, stop)
            (settings.state_dir / "url").write_text(url)
            print(f"Bitpress is up at {url}; its key is in {settings.key_file}. Ctrl-C stops it.", flush=True)
            while not stop.wait(0.5):
                for name, child in (("API", api), ("dispatcher", dispatcher)):
                    if child.poll() is not None:
                        print(f"the {name} ended with exit code {child.returncode}", file=sys.stderr)
                        return 1
    finally:
        (settings.state_dir / "url").unlink(missing_ok=True)
        embedded_redis.stop(settings.redis_dir)
    return 0


@contextlib.contextmanager
def _child(module: str, environment: dict[str, str], *args: str) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends its children in order.
    child = subprocess.Popen([sys.executable, "-m", module, *args], env=environment, start_new_session=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_ready(url: str, api: subprocess.Popen[bytes], stop: threading.Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not stop.is_set():
        if api.poll() is not None:
            raise Unavailable(f"the API ended with exit code {api.returncode} before it was ready")
        try:
            with urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
                return
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"{url} is not ready after {START_SECONDS:.0f} s: {error}") from error
        stop.wait(0.2)
