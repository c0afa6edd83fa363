"""Shards as Ray actors: one actor per device in one placement group. The only file that imports Ray."""

import os
import platform
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from math import inf
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
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bitpress import cluster
from bitpress.errors import BitpressError, Conflict, InvalidJob, OutOfMemory, WorkerLost
from bitpress_workers.pipeline.exchange import LocalGroup, Meeting, PeerLost, ProcessGroup, join_store, open_store
from bitpress_workers.pipeline.fleet import Ref, local_devices
from bitpress_workers.pipeline.headway import Position, Watch, stack_of
from bitpress_workers.pipeline.memory import num_killed_for_memory, out_of_memory
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.shard import Shard, ShardConfig, device_of

LOOK_SECONDS = 5.0  # between two looks at whether there is room for a fleet, or whether its shards get on
CAUSE_SECONDS = 20.0  # shards notice at once that another one is gone; Ray knows why, but somewhat later
LIBRARIES = ("bitpress", "torch", "transformers")
# What the libraries of a shard read when they are loaded, bits among it: hosts may have been started without.
ENVIRONMENT = ("MKL_CBWR", "THP_MEM_ALLOC_ENABLE")

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

    def __init__(
        self,
        address: str,
        num_shards: int | None,
        temp_dir: str | None = None,
        stall_seconds: float = inf,
        watching: Callable[[], None] = lambda: None,
    ) -> None:
        """stall_seconds: how long a shard may stand still. watching: called each time that shards are looked at."""
        self._local, self._stall_seconds, self._watching = address == "local", stall_seconds, watching
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
        return Devices("cpu", int(total.get("CPU", 0)), _probe(_host_cores, num_cpus=0).memory_bytes)

    def shared_devices(self) -> cluster.Devices:
        """The cluster's devices by host, and how many nobody has reserved."""
        kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        hosts = [node for node in ray.nodes() if node["Alive"]]
        nodes = tuple(
            cluster.Node(host=node["NodeManagerAddress"], devices=int(node["Resources"].get(kind, 0))) for node in hosts
        )
        return cluster.Devices(
            kind="cuda" if kind == "GPU" else "cpu",
            total=sum(node.devices for node in nodes),
            free=int(ray.available_resources().get(kind, 0)),
            nodes=nodes,
        )

    def make_fleet(self, config: ShardConfig, size: int, fewest: int, waiting: Callable[[str], None]) -> "RayFleet":
        """A FleetMaker."""
        bundle = {"CPU": 1.0} | ({"GPU": 1.0} if config.device == "cuda" else {})
        group = _place(bundle, size, fewest, waiting)
        return RayFleet(config, group, self._stall_seconds, self._watching)


class RayFleet:
    """Runs Shard's methods on actors; see pipeline/fleet.py for the contract."""

    def __init__(
        self, config: ShardConfig, group: PlacementGroup, stall_seconds: float, watching: Callable[[], None]
    ) -> None:
        """Start a shard in every bundle of a placement group, which is given back by `close`."""
        self._group = group
        self.size = len(group.bundle_specs)
        self.stall_seconds, self._watch, self._watching = stall_seconds, Watch(self.size), watching
        strategy = PlacementGroupSchedulingStrategy(placement_group=group)
        resources = {"num_cpus": 1, "num_gpus": 1 if config.device == "cuda" else 0}
        # A restarted actor would have lost its activations: the whole fleet is made anew, and the job goes on.
        options = {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": strategy, **resources}
        environment = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}}
        actor = ray.remote(**options, runtime_env=environment, concurrency_groups={"watch": 1})(_Actor)
        self._actors: list[ActorHandle] = [actor.remote() for _ in range(self.size)]
        self._hosts, self._killed = ["a host"] * self.size, [0] * self.size
        try:
            self._same_versions()
            where = self.get([self._actors[0].open.remote(self.size)])[0] if self.size > 1 else None
            self.get([a.build.remote(config, index, self.size, where) for index, a in enumerate(self._actors)])
        except BaseException:
            self.close()
            raise

    def on(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        return self._actors[index].call.remote(method.__name__, *args)

    def all(self, method: Callable[..., Any], *args: Any) -> list[Ref]:
        return [self.on(index, method, *args) for index in range(self.size)]

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        values = dict(self.as_completed(refs))
        return [values[ref] for ref in refs]

    def as_completed(self, refs: Sequence[Ref]) -> Iterator[tuple[Ref, Any]]:
        pending, asked = list(refs), list[Ref]()
        self._watch.begin()
        while pending:  # not in their order: the others may be waiting for the one that failed
            done, pending = ray.wait(pending, timeout=LOOK_SECONDS)
            if not done:
                asked = self._look(asked)
                self._watching()
                continue
            error = self._error(done[0])
            if isinstance(error, PeerLost):
                done, _ = ray.wait(pending, num_returns=len(pending), timeout=CAUSE_SECONDS) if pending else ([], [])
                causes = [cause for ref in done if not isinstance(cause := self._error(ref), PeerLost | None)]
                raise causes[0] if causes else error
            if error is not None:
                raise error
            yield done[0], ray.get(done[0])

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        remove_placement_group(self._group)

    def _same_versions(self) -> None:
        """Note the shards' hosts. Raises Conflict when libraries differ, and with them, perhaps, bits."""
        facts: list[tuple[str, dict[str, str], int]] = self.get([actor.facts.remote() for actor in self._actors])
        ours = _versions()
        for host, theirs, _ in facts:
            if theirs != ours:
                differ = [f"{name} {theirs[name]} (here {ours[name]})" for name in ours if theirs[name] != ours[name]]
                raise Conflict(f"host {host} has {', '.join(differ)}; all hosts of a job need the same versions")
        self._hosts = [host for host, _, _ in facts]
        self._killed = [killed for _, _, killed in facts]

    def _look(self, asked: list[Ref]) -> list[Ref]:
        """Ask all shards where they are; `asked`: the calls of the last time. Returns those to look at next time.

        Raises WorkerLost when one has stood still for too long.
        """
        if not asked:
            return [actor.position.remote() for actor in self._actors]
        answered = set(ray.wait(asked, num_returns=self.size, timeout=0)[0])
        self._watch.look([_position(ref) if ref in answered else None for ref in asked])
        if standing := self._watch.standing(self.stall_seconds):
            index, how = standing
            raise WorkerLost(f"{self._name(index)} {how}, for {self.stall_seconds:.0f} s or more")
        calls = zip(self._actors, asked, strict=True)
        return [actor.position.remote() if ref in answered else ref for actor, ref in calls]

    def _error(self, ref: Ref) -> Exception | None:
        """What a finished call failed with, in our words."""
        try:
            ray.get(ref)
        except ray.exceptions.OutOfMemoryError as error:
            return OutOfMemory(f"a worker was stopped because its host ran out of memory: {error}")
        except LOST as error:
            return self._lost(error)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ray.exceptions.RaySystemError) and "MemoryError" in str(cause):
                # It ran out while a call's arguments were unpacked: Ray tells so in words alone.
                return OutOfMemory(f"a host ran out of memory: {cause}")
            return out_of_memory(cause) or (cause if isinstance(cause, BitpressError) else error)
        return None

    def _lost(self, error: Exception) -> BitpressError:
        """Why an actor is gone. What a system ends for lack of memory has no last words, but is counted."""
        ids = [actor._actor_id.hex() for actor in self._actors]
        lost = getattr(error, "actor_id", None)
        name = self._name(ids.index(lost)) if lost in ids else "a device or its host"
        if lost in ids and self._num_killed(ids.index(lost)) > self._killed[ids.index(lost)]:
            return OutOfMemory(f"{name} was ended by its system, which lacked memory")
        return WorkerLost(f"{name} was lost: {str(error).splitlines()[0]}")

    def _num_killed(self, lost: int) -> int:
        """How many processes the host of a lost shard has ended for lack of memory; 0 when nobody is there to ask."""
        if self._hosts[lost] == ray.util.get_node_ip_address():
            return num_killed_for_memory()
        for index, actor in enumerate(self._actors):
            if index != lost and self._hosts[index] == self._hosts[lost]:
                with suppress(ray.exceptions.RayError):
                    return int(ray.get(actor.num_killed.remote(), timeout=LOOK_SECONDS))
        return 0

    def _name(self, index: int) -> str:
        return f"shard {index} on {self._hosts[index]}"


class _Actor:
    """Holds a Shard. Not one itself: an error while an actor is made would look like a lost host."""

    def __init__(self) -> None:
        self._shard: Shard | None = None
        self._num_calls, self._thread = 0, 0

    def facts(self) -> tuple[str, dict[str, str], int]:
        """This host's address, what a job's bits may depend on, and how many processes lacked memory here before."""
        return ray.util.get_node_ip_address(), _versions(), num_killed_for_memory()

    def open(self, size: int) -> tuple[str, int]:
        """Start what shards meet through; returns its address."""
        host = ray.util.get_node_ip_address()
        self._store, port = open_store(host, size)
        return host, port

    def build(self, config: ShardConfig, index: int, size: int, where: tuple[str, int] | None) -> None:
        device = device_of(config.device, 0)  # an actor sees one accelerator
        with self._working():
            if where is None:
                self._shard = Shard(config, LocalGroup(Meeting(1), 0, device))
                return
            store = join_store(*where, size) if index else self._store
            self._shard = Shard(config, ProcessGroup(store, index, size, device, ray.util.get_node_ip_address()))

    def call(self, method: str, *args: Any) -> Any:
        with self._working():
            return getattr(self._shard, method)(*args)

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def position(self) -> Position:
        """Where the shard is; another thread than the shard's answers."""
        thread, shard = self._thread, self._shard
        if not thread:
            return Position(busy=False)
        *counts, waits_for = shard.headway() if shard else (0, "")
        return Position(True, (self._num_calls, *counts, stack_of(thread)), waits_for)

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def num_killed(self) -> int:
        """How many processes this host has ended for lack of memory."""
        return num_killed_for_memory()

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._num_calls, self._thread = self._num_calls + 1, threading.get_ident()
        try:
            yield
        finally:
            self._thread = 0


def _position(ref: Ref) -> Position | None:
    """What a shard has answered; nothing when it is lost, which its call will tell."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError:
        return None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def _place(bundle: dict[str, float], size: int, fewest: int, waiting: Callable[[str], None]) -> PlacementGroup:
    """Reserve `size` bundles, or as many as the hosts that are left can hold, `fewest` at least; see FleetMaker."""
    group, reserved = None, 0
    try:
        while True:
            room = _room(bundle)
            if room < fewest:
                raise InvalidJob(f"the job asks for {fewest} devices with {bundle} each; the whole cluster has {room}")
            if group is None or reserved != min(size, room):
                if group is not None:
                    remove_placement_group(group)
                reserved = min(size, room)
                group = placement_group([dict(bundle) for _ in range(reserved)], strategy="PACK")
            if group.wait(LOOK_SECONDS):
                return group
            waiting(f"waiting for {reserved} devices: the cluster has {room}, but not all of them are free")
    except BaseException:
        if group is not None:
            remove_placement_group(group)
        raise


def _room(bundle: dict[str, float]) -> int:
    """How many bundles the hosts that are alive can hold, when nobody else uses them."""
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(host.get(kind, 0.0) // number for kind, number in bundle.items())) for host in hosts)


def _probe(function: Callable[[], Devices], **resources: int) -> Devices:
    found: Devices = ray.get(ray.remote(**resources)(function).remote())
    return found


def _host_cores() -> Devices:
    return Devices.of_host_cores()
