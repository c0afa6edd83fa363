"""What a plan says passes between shards is what their process groups receive, to the byte."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitpress.jobs import parse_spec
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.numerics.hessian import Gram, GramTree
from bitpress_workers.pipeline import exchange
from bitpress_workers.pipeline.exchange import ProcessGroup, join_store, open_store
from bitpress_workers.pipeline.placement import NUM_SLICES, cut, micro_batches, share
from bitpress_workers.pipeline.shard import Shard, ShardConfig, ShardMethod, stream_name
from bitpress_workers.pipeline.sizes import model_sizes
from bitpress_workers.pipeline.traffic import block_traffic, num_nodes

ROW_TILE, SEQUENCES = 64, 10
METHODS: dict[str, dict[str, Any]] = {  # whose rows agree on nothing
    "gptq": {"kind": "gptq", "bits": 3},
    "gptq in activation order": {"kind": "gptq", "bits": 3, "order": "activation", "group_size": 64},
    "rtn": {"kind": "rtn", "bits": 4, "group_size": 32},
}


@pytest.mark.parametrize("slices", [range(8), range(4), range(3, 8), range(5, 6), range(2, 2), range(1, 7)])
def test_a_shard_holds_as_many_grams_as_its_tree_is_left_with(slices: range) -> None:
    tree = GramTree()
    for index in slices:
        tree.add(index, Gram.zeros(2))
    assert num_nodes(slices) == len(tree.nodes)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_bytes_between_shards(
    opt_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    received: list[int] = []
    rebuild = exchange.rebuild

    def counting(structure: bytes, tensors: list[Tensor]) -> Any:
        received.append(sum(tensor.nbytes for tensor in tensors))
        return rebuild(structure, tensors)

    monkeypatch.setattr(exchange, "rebuild", counting)
    spec = parse_spec({"model": {"uri": str(opt_mini)}, "method": METHODS[name], "calibration": {"dataset": "c4"}})
    slices = cut(SEQUENCES, NUM_SLICES)
    config = ShardConfig(
        model=spec.model,
        methods={0: ShardMethod(spec.method, ROW_TILE)},
        device="cpu",
        store_url=tmp_path.as_uri(),
        slices=slices,
    )
    shards = [Shard(config, group) for group in _over_sockets(size)]
    tokens_NS = torch.arange(SEQUENCES * 16).view(SEQUENCES, 16) % 100
    groups = [
        [batch for piece in share(len(slices), size, rank) for batch in micro_batches(slices[piece], 4)]
        for rank in range(size)
    ]
    checkpoint = Checkpoint.open(str(opt_mini))
    block = model_sizes(Outline(checkpoint), checkpoint).blocks[0]
    expected = block_traffic(spec.method, block, len(slices), ROW_TILE, size, "cpu")

    def of_call(method: Any, *arguments: Any) -> int:
        received.clear()
        with ThreadPoolExecutor(size) as threads:
            list(threads.map(lambda shard: method(shard, *arguments), shards))
        return sum(received)

    assert of_call(Shard.start, stream_name("calibration", 0), tokens_NS, groups) + of_call(Shard.load, 0) == 0
    of_call(Shard.begin_solving)
    for tap, traffic in zip(block.taps, expected, strict=True):
        gathered = of_call(Shard.factorize, [tap.name])
        assert gathered == traffic.grams
        assert gathered + of_call(Shard.solve, tap.name) == traffic.total(size)


def _over_sockets(size: int) -> list[ProcessGroup]:
    store, port = open_store("127.0.0.1", size)
    stores = [store, *(join_store("127.0.0.1", port, size) for _ in range(size - 1))]
    device = torch.device("cpu")
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: ProcessGroup(stores[rank], rank, size, device, "127.0.0.1"), range(size)))
