"""Hidden states between the blocks: where they lie and how they are cut does not show in them."""

import pytest
import torch
from small_models import build
from torch import Tensor

from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton
from bitpress_workers.pipeline.activations import Activations

TOKENS_NS = torch.arange(5 * 16).view(5, 16) % 61
BATCHES = (range(2), range(2, 4), range(4, 5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(path)
    return Checkpoint.open(str(path))


def _walk(activations: Activations, skeleton: Skeleton) -> list[Tensor]:
    """Pass all blocks; returns the hidden states in the end."""
    with torch.no_grad():
        for index in range(skeleton.num_blocks):
            assert activations.advance(skeleton.load_block(index), index)
    return [activations.hidden(batch) for batch in range(len(activations))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_host_memory_they_have_the_same_bits(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    skeleton = Skeleton(checkpoint, dtype=dtype)
    kept, on_host = (Activations(skeleton, TOKENS_NS, BATCHES, on_host=flag) for flag in (False, True))

    pairs = list(zip(_walk(kept, skeleton), _walk(on_host, skeleton), strict=True))

    assert all(torch.equal(left, right) and left.dtype == right.dtype == dtype for left, right in pairs)
    assert torch.equal(kept.logits(1, 0), on_host.logits(1, 0))


def test_in_host_memory_they_do_not_hold_the_blocks_output(checkpoint: Checkpoint) -> None:
    """What the device holds of it can go."""
    skeleton = Skeleton(checkpoint)
    on_host = Activations(skeleton, TOKENS_NS, BATCHES, on_host=True)
    outputs = []

    def block(hidden_BSD: Tensor, **_: object) -> Tensor:
        outputs.append(hidden_BSD + 1)
        return outputs[-1]

    assert on_host.advance(block, 0)

    kept = {on_host.hidden(batch).data_ptr() for batch in range(len(on_host))}
    assert kept.isdisjoint(output.data_ptr() for output in outputs)


def test_one_number_that_is_not_finite_is_noticed(checkpoint: Checkpoint) -> None:
    activations = Activations(Skeleton(checkpoint), TOKENS_NS, BATCHES)

    def block(hidden_BSD: Tensor, **_: object) -> Tensor:
        return hidden_BSD if len(hidden_BSD) > 1 else hidden_BSD.index_fill(2, torch.tensor([3]), float("inf"))

    assert not activations.advance(block, 0)


def test_a_micro_batch_belongs_to_the_slice_it_begins_in(checkpoint: Checkpoint) -> None:
    activations = Activations(Skeleton(checkpoint), TOKENS_NS, BATCHES[1:])

    assert activations.by_slice((range(2), range(2, 4), range(4, 5))) == {1: [0], 2: [1]}
    assert [activations.size(batch) for batch in range(len(activations))] == [2, 1]
