"""Shards as Ray actors: one actor per device in one placement group. The only file that imports Ray."""

import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Self

# Read by Ray when it is imported. Its own default depends on what ran before it in the same home
# directory, so the mode is set everywhere.
os.environ.setdefault("RAY_AUTH_MODE", "token")
if "RAY_ADDRESS" not in os.environ:
    # A Ray of our own: a token that nobody else knows, and loopback only, which is what Ray does where
    # it knows no clusters of several hosts.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bitpress.errors import BitpressError, InvalidJob, OutOfMemory, WorkerLost
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
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # many kinds: sockets, timeouts, authentication
            raise WorkerLost(f"Ray ({address}) cannot be reached: {error}") from error

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
            if isinstance(error.cause, torch.OutOfMemoryError):
                raise OutOfMemory(f"a device ran out of memory: {error.cause}") from error
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
    there = ray.cluster_resources()
    if any(there.get(kind, 0) < number * size for kind, number in bundle.items()):
        raise InvalidJob(
            f"{size} shards need {bundle} each; the whole cluster has {there.get('CPU', 0):g} CPUs "
            f"and {there.get('GPU', 0):g} GPUs"
        )
    group = placement_group([dict(bundle) for _ in range(size)], strategy="PACK")
    if not group.wait(PLACEMENT_SECONDS):
        remove_placement_group(group)
        raise WorkerLost(f"no place for {size} shards with {bundle} each within {PLACEMENT_SECONDS:.0f} s")
    return group


def _probe(function: Callable[[], Devices], **resources: int) -> Devices:
    found: Devices = ray.get(ray.remote(**resources)(function).remote() if resources else ray.remote(function).remote())
    return found
