"""Makes one plan in a process of its own: a request on standard input, an answer on standard output.

A process, since planning imports torch and reads files of strangers: it may take only so much memory,
and whoever started it may end it at any time.
"""

import resource
import signal
import sys
import warnings
from pathlib import Path

from bitpress.errors import BitpressError
from bitpress.plans import DevicesLike, PlanAnswer, PlanRequest, Rates
from bitpress_workers.parent import end_with_parent
from bitpress_workers.pipeline.fleet import local_devices
from bitpress_workers.pipeline.outlook import RatesFrom, outlook
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.rates import rates_of

MEMORY_BYTES = 16 * 2**30
GIB = 2**30


def answer(
    request: PlanRequest, ray_address: str, rates_file: Path, device_memory_gib: float | None = None
) -> PlanAnswer:
    """Plan for the devices that are stated, else for those of this host or of the Ray cluster at an address.

    device_memory_gib: the operator's limit to what is taken of each of the latter.
    """
    try:
        if request.devices_like:
            return PlanAnswer(report=outlook(request.spec, *_stated(request.devices_like)))
        devices = local_devices() if ray_address == "local" else _of_cluster(ray_address)
        devices = devices.within(device_memory_gib)
        here = devices.kind == local_devices().kind
        rates = rates_of(devices.kind, rates_file) if here else None
        return PlanAnswer(report=outlook(request.spec, devices, rates, "probe" if here else "nowhere"))
    except BitpressError as error:
        return PlanAnswer.refusal(error)


def _stated(like: DevicesLike) -> tuple[Devices, Rates | None, RatesFrom]:
    host_bytes = int(like.host_memory_gib * GIB) if like.host_memory_gib else None
    devices = Devices(like.kind, like.count, int(like.memory_gib * GIB), host_bytes)
    return devices, like.rates, "statement" if like.rates else "nowhere"


def _of_cluster(address: str) -> Devices:
    from bitpress_workers.ray_fleet import RaySession

    with RaySession(address, None) as session:
        return session.devices()


def main(ray_address: str, rates_file: Path, device_memory_gib: float | None) -> int:
    """Entry point of `python -m bitpress_workers plan`."""
    end_with_parent(signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    request = PlanRequest.model_validate_json(sys.stdin.read())
    print(answer(request, ray_address, rates_file, device_memory_gib).model_dump_json())
    return 0
