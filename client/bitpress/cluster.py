"""What a service runs on: its dispatchers, their devices, and what waits for them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LOCAL = "local"  # the cluster of a dispatcher that has a host of its own


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(_Model):
    """A host and its devices: accelerators, or its CPU cores where there are none."""

    host: str
    devices: int


class Devices(_Model):
    """The devices a dispatcher gives to jobs. `free`: not held by any of them."""

    kind: Literal["cpu", "cuda"]
    total: int
    free: int
    nodes: tuple[Node, ...]


class DispatcherReport(_Model):
    """What a dispatcher says of itself every few seconds. `devices` is null while its cluster cannot be reached."""

    owner: str
    cluster: str = Field(description="a Ray cluster's address; local: this host alone")
    busy: bool
    devices: Devices | None


class Dispatcher(DispatcherReport):
    seen_at: datetime


class QueueLevel(_Model):
    priority: int
    jobs: int


class Cluster(_Model):
    """`queue` holds the priorities that have jobs, the highest first; `delayed` jobs pause before another attempt."""

    dispatchers: tuple[Dispatcher, ...]
    queue: tuple[QueueLevel, ...]
    delayed: int
    running: int
