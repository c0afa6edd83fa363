"""Where jobs run: clusters with their hosts and devices, what runs there, and why the others wait."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from bitpress.cluster import LOCAL, Devices, Dispatcher
from bitpress.jobs import Job, JobFilter, JobState
from bitpress_service.jobstore import Holding, JobStore
from bitpress_service.routes.dependencies import JobReader, Jobs
from bitpress_service.web.login import SessionRoute
from bitpress_service.web.rendering import render

router = APIRouter(prefix="/cluster", route_class=SessionRoute)

SHOWN = 50  # jobs that wait


@dataclass(frozen=True)
class Running:
    """A job that runs; `job` is None for another tenant's. devices: as in Holding."""

    job: Job | None
    owner: str
    devices: int


@dataclass(frozen=True)
class Place:
    """A cluster, or a dispatcher's own host. `devices` is None while it cannot be reached."""

    name: str
    dispatchers: tuple[Dispatcher, ...]
    devices: Devices | None
    busy: int
    running: tuple[Running, ...]


@router.get("")
async def show(request: Request, caller: JobReader, jobs: Jobs) -> Response:
    found, holdings = await jobs.cluster(), await jobs.holdings()
    waiting = (await jobs.list(caller.tenant, limit=SHOWN, where=JobFilter(state=JobState.QUEUED))).data
    running = [await _running(jobs, holding, caller.tenant) for holding in holdings]
    is_part = "hx-request" in request.headers
    return render(
        request,
        "cluster_live.html" if is_part else "cluster.html",
        places=_places(found.dispatchers, holdings, running),
        cluster=found,
        waiting=sorted(waiting, key=lambda job: (-job.priority, job.created_at)),
        elsewhere=sum(level.jobs for level in found.queue) + found.delayed - len(waiting),
    )


async def _running(jobs: JobStore, holding: Holding, tenant: str) -> Running:
    job = await jobs.get(holding.job_id, tenant) if holding.tenant == tenant else None
    return Running(job, holding.owner, holding.devices)


def _places(dispatchers: Sequence[Dispatcher], holdings: Sequence[Holding], running: Sequence[Running]) -> list[Place]:
    """Dispatchers of one cluster are one place; those with a host of their own are one each."""
    by_name: dict[str, list[Dispatcher]] = {}
    for each in dispatchers:
        by_name.setdefault(each.owner if each.cluster == LOCAL else each.cluster, []).append(each)
    held = Counter[str]()
    for holding in holdings:
        held[holding.cluster] += holding.devices
    places = []
    for name, members in by_name.items():
        devices = next((each.devices for each in members if each.devices), None)
        owners = {each.owner for each in members}
        is_own = members[0].cluster == LOCAL
        busy = devices.total - devices.free if devices and is_own else held[name]
        there = tuple(each for each in running if each.owner in owners)
        places.append(Place(name, tuple(members), devices, min(busy, devices.total if devices else 0), there))
    return places
