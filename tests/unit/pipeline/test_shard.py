"""What a shard holds: the block in hand, its sequences, and nothing of the blocks before."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitpress.errors import StoreError
from bitpress.jobs import ModelSource, parse_spec
from bitpress_workers.pipeline.exchange import LocalGroup, Meeting
from bitpress_workers.pipeline.shard import Shard, ShardConfig, ShardMethod, stream_name

SLICES = (range(2), range(2, 4), range(4, 5))
TOKENS_NS = torch.randint(0, 1000, (5, 24), generator=torch.Generator().manual_seed(0))
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"kind": "rtn", "bits": 3},
    "gptq": {"kind": "gptq", "bits": 3, "order": "activation"},
    "gptq block": {"kind": "gptq", "bits": 3, "group_size": 32, "propagation": "block"},
    "spqr": {"kind": "spqr", "bits": 3},
    "septq": {"kind": "septq", "bits": 3},
    "ptq161": {"kind": "ptq161", "epochs": 1},
}


def shard_of(model: Path, store: Path, method: dict[str, Any]) -> Shard:
    spec = {"model": {"uri": str(model)}, "method": method, "calibration": {"dataset": "c4"}}
    config = ShardConfig(
        model=ModelSource(uri=str(model)),
        methods={0: ShardMethod(parse_spec(spec).method, row_tile=64)},
        device="cpu",
        store_url=store.as_uri(),
        slices=SLICES,
    )
    return Shard(config, LocalGroup(Meeting(1), 0, torch.device("cpu")))


def solve(shard: Shard) -> None:
    """Compress the block in hand as the job does."""
    shard.begin_solving()
    taps = list(shard._taps)
    shard.factorize(taps)
    for tap in taps:
        shard.solve(tap)


def train(shard: Shard) -> None:
    shard.pass_reference()
    shard.begin_training()
    shard.train()
    shard.finish_training()


def tensor_bytes() -> int:
    """Of all storages that live."""
    found = (item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.device.type == "cpu")
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in found)}
    return sum(storages.values())


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python's collector does not run: what goes, goes because nothing refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_a_compressed_block_outlives_it(opt_mini: Path, tmp_path: Path, name: str) -> None:
    shard = shard_of(opt_mini, tmp_path, METHODS[name])
    trained = name == "ptq161"
    groups = [[batch for piece in SLICES for batch in ([range(n, n + 1) for n in piece] if trained else [piece])]]
    for stream in ("calibration", "reference") if trained else ("calibration",):
        shard.start(stream_name(stream, 0), TOKENS_NS, groups)
    held = []
    for index in range(3):
        shard.load(index)
        held.append(tensor_bytes())
        block = weakref.ref(shard._block)
        (train if trained else solve)(shard)
        shard.publish(f"{index}.safetensors")
        shard.advance(stream_name("calibration", 0))
        shard.finish_publishing()
        assert tensor_bytes() > held[-1]  # the compressed linears
    shard.load(3)
    held.append(tensor_bytes())
    assert block() is None
    assert len(set(held)) == 1


def test_a_block_that_cannot_be_written_is_an_error_when_that_is_waited_for(opt_mini: Path, tmp_path: Path) -> None:
    shard = shard_of(opt_mini, tmp_path, METHODS["rtn"])
    (tmp_path / "file").write_text("no directory")
    shard.start(stream_name("calibration", 0), TOKENS_NS, [list(SLICES)])
    shard.load(0)
    solve(shard)
    shard.publish("file/0.safetensors")
    shard.advance(stream_name("calibration", 0))
    with pytest.raises(StoreError):
        shard.finish_publishing()
