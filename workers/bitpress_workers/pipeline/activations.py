"""One shard's sequences on their way through the network, in fixed micro-batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bitpress_workers.models.skeleton import Arguments, Skeleton


class Activations:
    """Hidden states before the block in hand, one tensor [sequences, tokens, hidden] for each micro-batch."""

    def __init__(self, skeleton: Skeleton, tokens_NS: Tensor, batches: Sequence[range]) -> None:
        """Embed the sequences of `batches`, given as ranges of tokens_NS's rows."""
        self._skeleton = skeleton
        self._batches = list(batches)
        self._tokens = [tokens_NS[batch.start : batch.stop] for batch in batches]
        self._hidden: list[Tensor] = []
        self._arguments: dict[torch.Size, Arguments] = {}
        for tokens_BS in self._tokens:
            hidden_BSD, arguments = skeleton.enter(tokens_BS)
            self._hidden.append(hidden_BSD)
            # Masks, positions and the like depend on the shape alone: without padding all sequences are alike.
            self._arguments.setdefault(tokens_BS.shape, arguments)

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self._batches)

    def by_slice(self, slices: Sequence[range]) -> Mapping[int, list[int]]:
        """Micro-batches of each slice that is here; a micro-batch never lies in two slices."""
        return {
            index: found
            for index, part in enumerate(slices)
            if (found := [n for n, batch in enumerate(self._batches) if batch.start in part])
        }

    def size(self, batch: int) -> int:
        return len(self._batches[batch])

    def hidden(self, batch: int) -> Tensor:
        return self._hidden[batch]

    def forward(self, block: Callable[..., Any], block_index: int, batch: int) -> Tensor:
        """Return a block's output for a micro-batch; with a gradient where the block's weights have one."""
        arguments = self._arguments[self._tokens[batch].shape]
        return self._skeleton.run_block(block, block_index, self._hidden[batch], arguments)

    def advance(self, block: Callable[..., Any], block_index: int) -> bool:
        """Replace every micro-batch by the block's output. Returns whether all of it is finite."""
        finite = True
        for batch in range(len(self._batches)):
            self._hidden[batch] = self.forward(block, block_index, batch)
            finite = finite and bool(torch.isfinite(self._hidden[batch]).all())
        return finite

    def score(self) -> list[float]:
        """Mean negative log-likelihood of each window's S - 1 next-token predictions, float32.

        Window by window: logits are the widest tensors of a job.
        """
        losses: list[float] = []
        for tokens_BS, hidden_BSD in zip(self._tokens, self._hidden, strict=True):
            for window in range(len(tokens_BS)):
                tokens_1S = tokens_BS[window : window + 1]
                logits_SV = self._skeleton.leave(tokens_1S, hidden_BSD[window : window + 1])[0]
                losses.append(float(cross_entropy(logits_SV[:-1].float(), tokens_1S[0, 1:].to(logits_SV.device))))
        return losses
