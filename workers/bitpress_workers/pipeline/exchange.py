"""What the shards of a job exchange tensors through: each calls the same methods, in the same order.

Between threads values are handed over as they are. Between processes a value goes as a header, that
is its structure and the types of its tensors, and then as the tensors' bytes: by gloo from a host's
memory, by NCCL from an accelerator's. A shard that fails or hangs keeps the others waiting; ending
that is the fleet's business, and after a while the deadline's.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue
from threading import Barrier, BrokenBarrierError
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # typed here only

from bitpress.errors import WorkerLost
from bitpress_workers.pipeline.packing import flatten, header_of, read_header, rebuild

PEER_SECONDS = 86400.0  # a shard waits as long as others work, which may be hours; the fleet ends a wait for nothing
TAG = 0
_LEFT = object()  # in a box of a meeting that somebody left


class PeerLost(WorkerLost):
    """Another shard did not answer. The fleet may know why."""


Move = Callable[[Any, Tensor], Any]  # a torch backend sends or receives bytes; returns what to wait for


class Group(Protocol):
    """All shards of a job, as one of them, number `rank`, sees them."""

    rank: int
    size: int
    device: torch.device

    def gather(self, value: Any, owner: int) -> list[Any]:
        """Return all shards' values, in their order, to the owner; nothing to the others."""
        ...

    def broadcast(self, value: Any, owner: int) -> Any:
        """Return the owner's value."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Return all shards' values, in their order."""
        ...

    def send(self, value: Any, peer: int) -> None:
        """Hand a value to one other shard, which is to call `receive`."""
        ...

    def receive(self, peer: int) -> Any:
        """Return the next value that another shard sends to this one."""
        ...

    def headway(self) -> tuple[int, str]:
        """How often this shard has exchanged so far, and whom it waits for now; may be called from any thread."""
        ...


class Meeting:
    """Where the shards of one process meet."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self._boxes = {(sender, reader): SimpleQueue[Any]() for sender in range(size) for reader in range(size)}
        self._barrier = Barrier(size)
        self._error: BaseException | None = None

    def wait(self) -> None:
        """Wait for all others. Raises the error that one of them left with."""
        try:
            self._barrier.wait()
        except BrokenBarrierError:
            raise self._error or PeerLost("the fleet was closed") from None

    def put(self, value: Any, sender: int, reader: int) -> None:
        self._boxes[sender, reader].put(value)

    def take(self, sender: int, reader: int) -> Any:
        """Wait for the next value. Raises the error that a shard left with."""
        box = self._boxes[sender, reader]
        value = box.get()
        if value is _LEFT:
            box.put(value)
            raise self._error or PeerLost("the fleet was closed")
        return value

    def leave(self, error: BaseException | None = None) -> None:
        """Let nobody wait any longer; the first error becomes that of all."""
        self._error = self._error or error
        self._barrier.abort()
        for box in self._boxes.values():
            box.put(_LEFT)


class LocalGroup:
    """Shards that are threads of one process."""

    def __init__(self, meeting: Meeting, rank: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, len(meeting.values), device
        self._meeting = meeting

    def gather(self, value: Any, owner: int) -> list[Any]:
        values = self._exchange(value)
        return [self._here(value) for value in values] if self.rank == owner else []

    def broadcast(self, value: Any, owner: int) -> Any:
        return self._here(self._exchange(value)[owner])

    def all_gather(self, value: Any) -> list[Any]:
        return [self._here(value) for value in self._exchange(value)]

    def send(self, value: Any, peer: int) -> None:
        self._meeting.put(value, self.rank, peer)

    def receive(self, peer: int) -> Any:
        return self._here(self._meeting.take(peer, self.rank))

    def headway(self) -> tuple[int, str]:
        """Nothing: threads of one process are not looked at."""
        return 0, ""

    def _exchange(self, value: Any) -> list[Any]:
        self._meeting.values[self.rank] = value
        self._meeting.wait()
        values = list(self._meeting.values)
        self._meeting.wait()  # for all others to have read them
        self._meeting.values[self.rank] = None
        return values

    def _here(self, value: Any) -> Any:
        """Return a value as it is, but for tensors of another shard's accelerator, which are copied to this one's."""
        if self.size == 1 or self.device.type == "cpu":
            return value
        structure, tensors = flatten(value)
        return rebuild(structure, [tensor.to(self.device) if tensor.is_cuda else tensor for tensor in tensors])


class ProcessGroup:
    """Shards that are processes, each connected to every other."""

    def __init__(
        self, store: Store, rank: int, size: int, device: torch.device, host: str, seconds: float = PEER_SECONDS
    ) -> None:
        """Meet the others through `store`. Listens on the address `host` alone.

        seconds: how long this shard waits for another one. Raises PeerLost when they do not all come.
        """
        self.rank, self.size, self.device = rank, size, device
        self._num_moves, self._waits_for = 0, ""
        timeout = timedelta(seconds=seconds)
        try:
            self._gloo = _gloo(PrefixStore("gloo", store), rank, size, timeout, host)
            self._nccl = _nccl(PrefixStore("nccl", store), rank, size, timeout) if device.type == "cuda" else None
        except RuntimeError as error:
            raise PeerLost(f"shard {rank} cannot reach the {size - 1} others: {_first_line(error)}") from error

    def gather(self, value: Any, owner: int) -> list[Any]:
        if self.rank != owner:
            self.send(value, owner)
            return []
        return [value if peer == owner else self.receive(peer) for peer in range(self.size)]

    def broadcast(self, value: Any, owner: int) -> Any:
        def move(backend: Any, tensor: Tensor) -> Any:
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = owner, 0
            return backend.broadcast([tensor], options)

        if self.rank != owner:
            return self._receive(owner, move)
        self._send(value, owner, move)
        return value

    def all_gather(self, value: Any) -> list[Any]:
        return [self.broadcast(value, owner) for owner in range(self.size)]

    def send(self, value: Any, peer: int) -> None:
        self._send(value, peer, lambda backend, tensor: backend.send([tensor], peer, TAG))

    def receive(self, peer: int) -> Any:
        return self._receive(peer, lambda backend, tensor: backend.recv([tensor], peer, TAG))

    def headway(self) -> tuple[int, str]:
        return self._num_moves, self._waits_for

    def _send(self, value: Any, peer: int, move: Move) -> None:
        structure, tensors = flatten(value)
        header = torch.frombuffer(bytearray(header_of(structure, tensors)), dtype=torch.uint8)
        for tensor in (torch.tensor([len(header)]), header, *tensors):
            self._move(tensor.contiguous(), peer, move)

    def _receive(self, peer: int, move: Move) -> Any:
        length = self._move(torch.empty(1, dtype=torch.int64), peer, move)
        header = self._move(torch.empty(int(length), dtype=torch.uint8), peer, move)
        structure, types = read_header(header.numpy().tobytes())
        return rebuild(structure, [self._move(kind.empty(self.device), peer, move) for kind in types])

    def _move(self, tensor: Tensor, peer: int, move: Move) -> Tensor:
        """Send or receive a tensor in place, as bytes: not every backend knows every type."""
        if tensor.numel():
            backend = self._nccl if tensor.is_cuda else self._gloo
            self._num_moves += 1
            self._waits_for = f"shard {peer}" if peer != self.rank else "all others"
            try:
                move(backend, tensor.flatten().view(torch.uint8)).wait()
            except RuntimeError as error:
                what = f"shard {self.rank} lost shard {peer}" if peer != self.rank else f"shard {peer} lost another"
                raise PeerLost(f"{what}: {_first_line(error)}") from error
            finally:
                self._waits_for = ""
        return tensor


def open_store(host: str, size: int, seconds: float = PEER_SECONDS) -> tuple[Store, int]:
    """Start the store through which `size` processes meet, on the address `host` alone; returns it and its port."""
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        listening = os.dup(server.fileno())  # the store closes it
    timeout = timedelta(seconds=seconds)
    store = TCPStore(host, port, size, True, timeout, wait_for_workers=False, master_listen_fd=listening)
    return store, port


def join_store(host: str, port: int, size: int, seconds: float = PEER_SECONDS) -> Store:
    """Connect to another process' store. Raises PeerLost when it is not there."""
    try:
        return TCPStore(host, port, size, False, timedelta(seconds=seconds))
    except RuntimeError as error:
        raise PeerLost(f"shard 0 at {host} cannot be reached: {_first_line(error)}") from error


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, host: str) -> Any:
    backend: Any = dist.ProcessGroupGloo
    options = backend._Options()
    options._devices = [backend.create_device(hostname=host)]
    options._timeout = timeout
    return backend(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a wait ends at the deadline, in the shard that waits
    backend: Any = dist.ProcessGroupNCCL
    options = backend.Options()
    options._timeout = timeout
    return backend(store, rank, size, options)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
