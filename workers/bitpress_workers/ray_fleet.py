"""Shards as Ray actors: one actor per device in one placement group. The only file that imports Ray."""

import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Self

# Read by Ray when it is imported. Its own default depends on what ran before it in the same home
# directory, so the mode is set everywhere; a Ray of our own gets a token that nobody else knows.
os.environ.setdefault("RAY_AUTH_MODE", "token")
if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"} & os.environ.keys():
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bitpress.errors import BitpressError, OutOfMemory, WorkerLost
from bitpress_workers.pipeline.fleet import Ref, local_devices
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.shard import Shard, ShardConfig

PLACEMENT_SECONDS = 120.0  # a placement group that cannot be placed waits for ever, without an error

# NodeDiedError is no RayActorError, so each is named.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OwnerDiedError,
)


class RaySession:
    """This process's connection to Ray: a cluster's address, or "local" for a Ray of its own.

    Ray is global to a process, so there is one session in a driver's life.
    """

    def __init__(self, address: str, num_shards: int | None, temp_dir: str | None = None) -> None:
        self._local = address == "local"
        if self._local:
            cores = len(os.sched_getaffinity(0))
            own = {
                "num_cpus": max(cores, num_shards or 0),
                "include_dashboard": False,
                "_temp_dir": temp_dir,
            }
        else:
            own = {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def devices(self) -> Devices:
        """The cluster's accelerators; its CPU cores when it has none."""
        if self._local:
            return local_devices()
        total = ray.cluster_resources()
        if total.get("GPU"):
            return Devices("cuda", int(total["GPU"]), _probe(local_devices, num_gpus=1).memory_bytes)
        return Devices("cpu", int(total.get("CPU", 0)), _probe(Devices.of_host_cores).memory_bytes)

    def make_fleet(self, config: ShardConfig, size: int) -> "RayFleet":
        return RayFleet(config, size)


class RayFleet:
    """Runs Shard's methods on actors; see pipeline/fleet.py for the contract."""

    def __init__(self, config: ShardConfig, size: int) -> None:
        self.size = size
        resources = {"num_cpus": 1, "num_gpus": 1 if config.device == "cuda" else 0}
        self._group = _place(size, resources)
        strategy = PlacementGroupSchedulingStrategy(placement_group=self._group)
        # A restarted actor would have lost its activations: a lost actor ends the attempt, and the job resumes.
        actor = ray.remote(max_restarts=0, max_task_retries=0, scheduling_strategy=strategy, **resources)(_Actor)
        self._actors = [actor.remote() for _ in range(size)]
        self.get([a.build.remote(config, index, size) for index, a in enumerate(self._actors)])

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        return self._actors[index].call.remote(method.__name__, *args)

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        return [self.on(index, method, *args) for index in range(self.size)]

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        try:
            values: list[Any] = ray.get(list(refs))
        except ray.exceptions.OutOfMemoryError as error:
            raise OutOfMemory(f"a worker was stopped because its host ran out of memory: {error}") from error
        except LOST as error:
            raise WorkerLost(f"a device or its host was lost: {error}") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BitpressError):
                raise error.cause from None
            raise
        return values

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        remove_placement_group(self._group)


class _Actor:
    """Holds a Shard. Not one itself: an error while an actor is made would look like a lost host."""

    def build(self, config: ShardConfig, index: int, num_shards: int) -> None:
        self._shard = Shard(config, index, num_shards, device_index=0)  # an actor sees one accelerator

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._shard, method)(*args)


def _place(size: int, resources: dict[str, int]) -> PlacementGroup:
    bundle = {"CPU": resources["num_cpus"]} | ({"GPU": 1} if resources["num_gpus"] else {})
    group = placement_group([dict(bundle) for _ in range(size)], strategy="PACK")
    if not group.wait(PLACEMENT_SECONDS):
        remove_placement_group(group)
        raise WorkerLost(f"no place for {size} shards with {bundle} each within {PLACEMENT_SECONDS:.0f} s")
    return group


def _probe(function: Callable[[], Devices], **resources: int) -> Devices:
    found: Devices = ray.get(ray.remote(**resources)(function).remote() if resources else ray.remote(function).remote())
    return found
