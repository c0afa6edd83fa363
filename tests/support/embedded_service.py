"""The embedded all-in-one service as a subprocess, as `bitpress up` runs it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from bitpress.client import Client


class EmbeddedService:
    """`bitpress up` with its whole state in one directory; started, killed and started again at will."""

    def __init__(self, state: Path) -> None:
        self.state = state
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._environment = os.environ | {
            "BITPRESS_STATE_DIR": str(state),
            "BITPRESS_PORT": str(self.port),
            "BITPRESS_LEASE_SECONDS": "3",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        url = self.state / "url"
        url.unlink(missing_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "up.log").open("ab") as log:
            command = [sys.executable, "-m", "bitpress_workers", "up"]
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        while not url.exists():
            assert self._process.poll() is None, (self.state / "up.log").read_text()
            time.sleep(0.1)

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", (self.state / "api-key").read_text().strip())

    def stop(self, by: signal.Signals = signal.SIGINT) -> int:
        """End it as Ctrl-C would, or as an operator does. Returns its exit code."""
        assert self._process is not None
        self._process.send_signal(by)
        return self._process.wait()

    def kill(self) -> None:
        """kill -9 of every process but the Redis server, which is a service of its own."""
        assert self._process is not None
        api_and_dispatcher = children(self._process.pid)
        drivers = [pid for parent in api_and_dispatcher for pid in children(parent)]
        for pid in (self._process.pid, *api_and_dispatcher, *drivers):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def driver(self) -> int:
        """The running driver's process id."""
        (driver,) = self.drivers()
        return driver

    def drivers(self) -> list[int]:
        assert self._process is not None
        return [pid for parent in children(self._process.pid) for pid in children(parent) if is_driver(pid)]


def children(pid: int) -> list[int]:
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]  # fmt: skip


def is_driver(pid: int) -> bool:
    return b"drive" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
