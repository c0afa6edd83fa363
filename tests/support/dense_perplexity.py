"""Perplexity of a checkpoint as it is, block by block."""

import math

from torch import Tensor
from torch.nn.functional import cross_entropy

from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton


def dense_perplexity(checkpoint: Checkpoint, windows_KS: Tensor, num_windows: int) -> float:
    """Return the perplexity in float32 of the first windows, all run at once."""
    tokens_KS = windows_KS[:num_windows]
    assert len(tokens_KS) == num_windows
    skeleton = Skeleton(checkpoint)
    hidden_KSD, arguments = skeleton.enter(tokens_KS)
    for index in range(skeleton.num_blocks):
        hidden_KSD = skeleton.run_block(skeleton.load_block(index), index, hidden_KSD, arguments)
    logits_KSV = skeleton.leave(tokens_KS, hidden_KSD)
    return math.exp(cross_entropy(logits_KSV[:, :-1].flatten(0, 1), tokens_KS[:, 1:].flatten()).item())
