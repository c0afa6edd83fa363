"""Hosts on one machine: network namespaces on one bridge, each with an address and a directory of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROCESSES_SECONDS = 20.0


class Hosts:
    """A few hosts that reach each other and nothing else."""

    def __init__(self, number: int) -> None:
        """Raises OSError when this user may not make network namespaces."""
        self._prefix = f"bitpress{os.getpid()}"
        self._switch = f"{self._prefix}s"
        self._names = [f"{self._prefix}h{host}" for host in range(number)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.own = Path(tempfile.mkdtemp(prefix="bp", dir="/tmp"))  # where each host finds a directory of its own
        self._directories = [Path(tempfile.mkdtemp(prefix="bp", dir="/tmp")) for _ in range(number)]
        for directory in self._directories:
            (directory / "output").touch()

    def address(self, host: int) -> str:
        return f"10.203.0.{host + 1}"

    def connect(self) -> None:
        for name in (self._switch, *self._names):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for host, name in enumerate(self._names):
            port = f"port{host}"
            _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "route", "add", "default", "dev", "eth0")

    def cut_off(self, host: int) -> None:
        """Take a host's link down; its processes go on, and nobody is told."""
        _ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def start(
        self, host: int, command: Sequence[str], env: dict[str, str], output: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; output: where standard output goes, by default to a file of the host's own."""
        mounted = ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(self._directories[host])]
        within = ["ip", "netns", "exec", self._names[host], "unshare", "--mount", *mounted, str(self.own), *command]
        with (self._directories[host] / "output").open("ab") as log:
            process = subprocess.Popen(
                within, env=os.environ | env, stdin=subprocess.PIPE, stdout=output or log, stderr=log
            )
        self._processes.append(process)
        return process

    def output(self, host: int) -> str:
        """All that its commands have written."""
        return (self._directories[host] / "output").read_text()

    def listeners(self, host: int) -> list[tuple[str, str]]:
        """Addresses that processes of a host listen on, and the processes' names."""
        found = subprocess.run(
            ["ip", "netns", "exec", self._names[host], "ss", "-Htlnp"], capture_output=True, text=True, check=True
        )
        lines = [line.split() for line in found.stdout.splitlines()]
        return [(fields[3], fields[5].split('"')[1]) for fields in lines]

    def kill(self, host: int, but: int | None = None) -> None:
        """End all processes of a host, with one exception, as a power cut would."""
        for pid in map(int, _ip("netns", "pids", self._names[host], check=False).split()):
            if pid != but:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End all processes and remove the hosts."""
        for host in range(len(self._names)):
            self.kill(host)
        for process in self._processes:
            with process:  # closes its pipes
                process.wait(PROCESSES_SECONDS)
        for name in (*self._names, self._switch):
            _ip("netns", "delete", name, check=False)
        for directory in (self.own, *self._directories):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def connected_hosts(number: int) -> Iterator[Hosts]:
    """Raises OSError where hosts cannot be made; removes them whatever happens."""
    hosts = Hosts(number)
    try:
        hosts.connect()
        yield hosts
    finally:
        hosts.close()


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
