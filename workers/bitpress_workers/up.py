"""`bitpress up`: the whole service on one machine, with nothing to install beside Python packages.

Three processes under this one: a real Redis-protocol server on a Unix socket, the API on loopback
and a dispatcher. Ends all of them when it is told to end, or when one of them ends by itself.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx2

from bitpress.errors import Conflict, Unavailable
from bitpress_service import embedded_redis
from bitpress_service.settings import Settings
from bitpress_workers.parent import end_with_parent

STOP_SECONDS = 20.0
START_SECONDS = 60.0


def up(settings: Settings, as_json: bool = False) -> int:
    """Serve until SIGINT or SIGTERM. Returns 0, or 1 when a process ended by itself.

    Raises Conflict when another one serves from this state directory or on this port.
    """
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.by)
    settings.make_state_dir()
    url_file = settings.state_dir / "url"
    with _alone(settings), _redis(settings) as redis_url:
        environment = os.environ | {"BITPRESS_REDIS_URL": redis_url, "BITPRESS_STATE_DIR": str(settings.state_dir)}
        with (
            _child(["bitpress_service"], environment, stop, STOP_SECONDS) as api,
            _child(
                ["bitpress_workers", "dispatch"], environment, stop, STOP_SECONDS + settings.drain_seconds
            ) as dispatcher,
        ):
            url = f"http://{settings.host}:{settings.port}"
            _wait_ready(f"{url}/readyz", api, stop)
            url_file.write_text(url)
            try:
                _announce(url, settings, as_json)
                return _watch({"API": api, "dispatcher": dispatcher}, stop)
            finally:
                url_file.unlink(missing_ok=True)


class _Stop(threading.Event):
    """Set by a signal, which is handed on: SIGTERM lets the block in hand be finished, Ctrl-C does not."""

    number = signal.SIGINT

    def by(self, number: int, _: object) -> None:
        self.number = signal.Signals(number)
        self.set()


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the state directory for this process; the system lets go of it however the process ends."""
    with (settings.state_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another `bitpress up` serves from {settings.state_dir}") from None
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, settings.port))
            except OSError as error:
                where = f"{settings.host}:{settings.port}"
                raise Conflict(f"{where}: {error.strerror}; BITPRESS_PORT chooses another port") from error
        yield


@contextlib.contextmanager
def _redis(settings: Settings) -> Iterator[str]:
    """The Redis that was configured, else one of our own, which is stopped in the end."""
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    try:
        yield embedded_redis.start(settings.redis_dir)
    finally:
        embedded_redis.stop(settings.redis_dir)


@contextlib.contextmanager
def _child(
    module: list[str], environment: dict[str, str], stop: _Stop, stop_seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends its children in order.
    command = [sys.executable, "-P", "-m", *module]  # -P: nothing is imported from the working directory
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGTERM)
    )
    try:
        yield child
    finally:
        child.send_signal(stop.number)
        try:
            child.wait(stop_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_ready(url: str, api: subprocess.Popen[bytes], stop: threading.Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx2.Client(trust_env=False, timeout=2) as client:  # our own address is never behind a proxy
        while not stop.wait(0.2):
            if api.poll() is not None:
                raise Unavailable(f"the API ended with exit code {api.returncode} before it was ready")
            try:
                if client.get(url).is_success:
                    return
                problem = "it answers that it is not"
            except httpx2.TransportError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise Unavailable(f"{url} is not ready after {START_SECONDS:.0f} s: {problem}")


def _announce(url: str, settings: Settings, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, "key_file": str(settings.key_file)}), flush=True)
    else:
        print(
            f"Bitpress is up at {url}, its page at {url}/ui; the key is in {settings.key_file}. Ctrl-C stops it.",
            flush=True,
        )


def _watch(children: dict[str, subprocess.Popen[bytes]], stop: threading.Event) -> int:
    while not stop.wait(0.5):
        for name, child in children.items():
            if child.poll() is not None:
                print(f"the {name} ended with exit code {child.returncode}", file=sys.stderr)
                return 1
    return 0
