"""Shards exchange values, as threads of one process and as peers over sockets: the same from either."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bitpress.errors import NumericalError
from bitpress.methods import SpQRConfig
from bitpress_workers.methods import compress
from bitpress_workers.numerics.hessian import Gram, factorize
from bitpress_workers.pipeline.exchange import (
    Group,
    LocalGroup,
    Meeting,
    PeerLost,
    ProcessGroup,
    join_store,
    open_store,
)
from bitpress_workers.pipeline.packing import flatten, rebuild

CPU = torch.device("cpu")
SIZE = 3


def in_threads(function: Callable[[int], Any], size: int = SIZE) -> list[Any]:
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(function, range(size)))


def local() -> list[Group]:
    meeting = Meeting(SIZE)
    return [LocalGroup(meeting, rank, CPU) for rank in range(SIZE)]


def over_sockets(seconds: float = 60.0) -> list[Group]:
    store, port = open_store("127.0.0.1", SIZE)
    stores = [store, *(join_store("127.0.0.1", port, SIZE) for _ in range(SIZE - 1))]
    return in_threads(lambda rank: ProcessGroup(stores[rank], rank, SIZE, CPU, "127.0.0.1", seconds))


@pytest.fixture(params=[local, over_sockets])
def groups(request: pytest.FixtureRequest) -> list[Group]:
    found: list[Group] = request.param()
    return found


def value_of(rank: int) -> dict[str, Any]:
    """Tensors of many types and shapes, among them a view and an empty one."""
    return {
        "rank": rank,
        "codes": (torch.arange(6).reshape(2, 3) + rank).to(torch.uint16),
        "mask": (torch.tensor([True, False]), torch.zeros(0, 4), 0.1 + rank),
        "scalar": torch.tensor(rank, dtype=torch.bfloat16),
        "view": torch.arange(12.0).reshape(3, 4).T[:, rank],
    }


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_all_get_everybodys_values_in_order(groups: list[Group]) -> None:
    for found in in_threads(lambda rank: groups[rank].all_gather(value_of(rank))):
        for rank in range(SIZE):
            assert_equal(found[rank], value_of(rank))


@pytest.mark.parametrize("owner", range(SIZE))
def test_the_owner_alone_gathers_and_its_value_goes_to_all(groups: list[Group], owner: int) -> None:
    def exchange(rank: int) -> tuple[list[Any], Any]:
        gathered = groups[rank].gather(value_of(rank), owner)
        return gathered, groups[rank].broadcast(value_of(rank), owner)

    for rank, (gathered, received) in enumerate(in_threads(exchange)):
        assert_equal(received, value_of(owner))
        assert len(gathered) == (SIZE if rank == owner else 0)
        for peer, value in enumerate(gathered):
            assert_equal(value, value_of(peer))


def test_values_go_from_one_to_another_in_order(groups: list[Group]) -> None:
    def pass_on(rank: int) -> list[Any]:
        found = [groups[rank].receive(rank - 1) for _ in range(2)] if rank else [value_of(0), value_of(1)]
        for value in found if rank + 1 < SIZE else ():
            groups[rank].send(value, rank + 1)
        return found

    for found in in_threads(pass_on):
        assert_equal(found, [value_of(0), value_of(1)])


def test_threads_hand_over_values_themselves() -> None:
    groups, values = local(), [torch.ones(2) for _ in range(SIZE)]
    for found in in_threads(lambda rank: groups[rank].all_gather(values[rank])):
        assert all(value is given for value, given in zip(found, values, strict=True))


def test_statistics_and_results_arrive_as_they_were() -> None:
    weight_OI, x_TI = torch.randn(16, 300), torch.randn(400, 300)
    gram = Gram.zeros(300)
    gram.accumulate(x_TI, 2)
    factor = factorize(gram, damping=0.01, order="activation")
    linear = compress(weight_OI, gram.xtx_II, SpQRConfig(bits=3))
    structure, tensors = flatten((gram, factor, linear))
    assert sum(tensor.numel() for tensor in tensors) < 2 * 300 * 300, "half of each of the two matrices is enough"
    found_gram, found_factor, found_linear = rebuild(structure, [tensor.clone() for tensor in tensors])
    assert_equal(found_gram.xtx_II, gram.xtx_II)
    assert (found_gram.num_sequences, found_gram.num_tokens) == (2, 400)
    assert_equal(vars(found_factor), vars(factor))
    assert found_linear.header() == linear.header()
    assert_equal(found_linear.tensors(), linear.tensors())


class Foreign:
    """Not of Bitpress; unpickling it would call what it names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise AssertionError('code of others was run')",)


def test_nothing_but_our_own_classes_is_rebuilt() -> None:
    with pytest.raises(pickle.UnpicklingError, match="exec is no class of Bitpress"):
        rebuild(pickle.dumps(Foreign()), [])


def test_a_failure_of_one_thread_is_everybodys() -> None:
    meeting = Meeting(SIZE)

    def work(rank: int) -> None:
        if rank == 1:
            meeting.leave(NumericalError("block 3"))
        else:
            with pytest.raises(NumericalError, match="block 3"):
                LocalGroup(meeting, rank, CPU).all_gather(None)

    in_threads(work)


def test_a_shard_that_does_not_answer_is_named() -> None:
    groups = over_sockets(seconds=1.0)
    with pytest.raises(PeerLost, match="shard 0 lost shard 1"):
        groups[0].gather(None, 0)


def test_shards_that_never_come_are_an_error() -> None:
    store, _ = open_store("127.0.0.1", SIZE)
    with pytest.raises(PeerLost, match="shard 0 cannot reach the 2 others"):
        ProcessGroup(store, 0, SIZE, CPU, "127.0.0.1", seconds=1.0)
