"""Makes one plan in a process of its own: a request on standard input, an answer on standard output.

A process, since planning imports torch and reads files of strangers: it may take only so much memory,
and whoever started it may end it at any time.
"""

import resource
import signal
import sys
import warnings
from pathlib import Path

from pydantic import TypeAdapter

from bitpress.errors import BitpressError
from bitpress.jobs import JobSpec
from bitpress.plans import (
    AnyPlanRequest,
    DevicesLike,
    PlanAnswer,
    PlanReport,
    PlanRequest,
    Rates,
    SweepPlanReport,
    SweepPlanRequest,
)
from bitpress.sweeps import SweepSpec
from bitpress_workers.parent import end_with_parent
from bitpress_workers.pipeline.fleet import local_devices
from bitpress_workers.pipeline.outlook import RatesFrom, outlook
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.rates import rates_of
from bitpress_workers.pipeline.sweep_outlook import sweep_outlook

MEMORY_BYTES = 16 * 2**30
GIB = 2**30

_REQUEST: TypeAdapter[PlanRequest | SweepPlanRequest] = TypeAdapter(AnyPlanRequest)


def answer(
    request: PlanRequest | SweepPlanRequest, ray_address: str, rates_file: Path, device_memory_gib: float | None = None
) -> PlanAnswer:
    """Plan for the devices that are stated, else for those of this host or of the Ray cluster at an address.

    device_memory_gib: the operator's limit to what is taken of each of the latter.
    """
    try:
        if request.devices_like:
            return PlanAnswer(report=_outlook(request.spec, *_stated(request.devices_like)))
        devices = local_devices() if ray_address == "local" else _of_cluster(ray_address)
        devices = devices.within(device_memory_gib)
        here = devices.kind == local_devices().kind
        rates = rates_of(devices.kind, rates_file) if here else None
        return PlanAnswer(report=_outlook(request.spec, devices, rates, "probe" if here else "nowhere"))
    except BitpressError as error:
        return PlanAnswer.refusal(error)


def _outlook(
    spec: JobSpec | SweepSpec, devices: Devices, rates: Rates | None, rates_from: RatesFrom
) -> PlanReport | SweepPlanReport:
    if isinstance(spec, SweepSpec):
        return sweep_outlook(spec, devices, rates, rates_from)
    return outlook(spec, devices, rates, rates_from)


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
    request = _REQUEST.validate_json(sys.stdin.read())
    print(answer(request, ray_address, rates_file, device_memory_gib).model_dump_json())
    return 0
