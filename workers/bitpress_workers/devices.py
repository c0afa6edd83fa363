"""The devices a dispatcher has for jobs: those of this host, or those of a Ray cluster.

A cluster is looked at by a process of its own, which prints a line of JSON whenever it has looked: a connection to
Ray belongs to a whole process, and one that Ray has let down cannot be mended.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass

import torch

from bitpress.cluster import LOCAL, Devices, Node
from bitpress_service.jobstore import Capacity
from bitpress_workers.parent import end_with_parent

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SILENCE_SECONDS = 60.0  # joining a cluster takes some of it


@dataclass
class DeviceWatch:
    """Knows the devices at a Ray address: None until it has looked, and while the cluster cannot be reached."""

    address: str
    latest: Devices | None = None

    @property
    def capacity(self) -> Capacity | None:
        """What claims are to fit into. A host of our own has one job at a time, which may have all of it."""
        if self.address == LOCAL:
            return None
        return Capacity(self.address, self.latest.total if self.latest else 0)

    def free_of(self, job_devices: int | None, busy: bool) -> Devices | None:
        """What to report: on a host of our own, what the job in hand leaves."""
        found = self.latest
        if found is None or self.address != LOCAL or not busy:
            return found
        held = min(found.total, job_devices or found.total)
        return found.model_copy(update={"free": found.total - held})

    async def run(self) -> None:
        """Look for as long as the dispatcher lives."""
        if self.address == LOCAL:
            self.latest = _devices_here()
            return
        while True:
            try:
                await self._follow()
            except (OSError, ValueError) as error:
                log.warning("the devices at %s are not known: %s", self.address, error)
            self.latest = None
            await asyncio.sleep(LOOK_SECONDS)

    async def _follow(self) -> None:
        looker = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "bitpress_workers", "devices", "--ray-address", self.address,
            stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert looker.stdout is not None
        try:
            while line := await asyncio.wait_for(looker.stdout.readline(), SILENCE_SECONDS):
                self.latest = Devices.model_validate_json(line)
        except TimeoutError:
            return
        finally:
            if looker.returncode is None:
                looker.kill()
            await looker.wait()


def _devices_here() -> Devices:
    """Counted only: who asks more of an accelerator holds some of its memory for as long as he lives."""
    accelerators = torch.cuda.device_count()
    total = accelerators or len(os.sched_getaffinity(0))
    node = Node(host=socket.gethostname(), devices=total)
    return Devices(kind="cuda" if accelerators else "cpu", total=total, free=total, nodes=(node,))


def main(ray_address: str) -> int:
    """Entry point of `python -m bitpress_workers devices`."""
    from bitpress_workers.ray_fleet import RaySession

    end_with_parent(signal.SIGKILL)
    with RaySession(ray_address, None) as session:
        while True:
            print(session.shared_devices().model_dump_json(), flush=True)
            time.sleep(LOOK_SECONDS)
