"""One shard's sequences on their way through the network, in fixed micro-batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from bitpress_workers.models.skeleton import Arguments, Skeleton
from bitpress_workers.pipeline.prompts import padded


class Activations:
    """Hidden states before the block in hand, one tensor [sequences, tokens, hidden] for each micro-batch.

    tokens: of each micro-batch, int64 [sequences, tokens].
    They have the forward's dtype: the checkpoint's own on accelerators, float32 on CPUs.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        tokens_NS: Tensor,
        batches: Sequence[range],
        on_host: bool = False,
        states: Iterator[Tensor] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Embed the sequences of `batches`, given as ranges of tokens_NS's rows.

        on_host: keep them in host memory, and one micro-batch at a time on the device; no bit depends on it.
        states: hidden states of each micro-batch, further on in the network, that are taken instead.
        lengths: of all sequences, which are padded on their right; None: all are as long as tokens_NS is wide.
        """
        self._skeleton, self._on_host = skeleton, on_host
        self.num_forwards = 0
        self._batches = list(batches)
        widths = [padded(max(lengths[row] for row in batch)) if lengths else tokens_NS.shape[1] for batch in batches]
        self.tokens = [
            tokens_NS[batch.start : batch.stop, :width] for batch, width in zip(batches, widths, strict=True)
        ]
        self._hidden: list[Tensor] = []
        self._arguments: dict[torch.Size, Arguments] = {}
        for tokens_BS in self.tokens:
            # Masks, positions and the like depend on the shape alone: without padding all sequences are alike.
            if states is None or tokens_BS.shape not in self._arguments:
                hidden_BSD, self._arguments[tokens_BS.shape] = skeleton.enter(tokens_BS)
            self._hidden.append(self._kept(hidden_BSD if states is None else next(states)))

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

    def sequences(self) -> Iterator[tuple[int, int, int]]:
        """Of every sequence its micro-batch, its place there, and its number among all of all shards."""
        for number, batch in enumerate(self._batches):
            yield from ((number, place, row) for place, row in enumerate(batch))

    def size(self, batch: int) -> int:
        return len(self._batches[batch])

    def hidden(self, batch: int) -> Tensor:
        """A micro-batch's hidden states, on the skeleton's device."""
        return self._hidden[batch].to(self._skeleton.device, non_blocking=True)

    def forward(self, block: Callable[..., Any], block_index: int, batch: int) -> Tensor:
        """Return a block's output for a micro-batch; with a gradient where the block's weights have one."""
        self.num_forwards += 1
        arguments = self._arguments[self.tokens[batch].shape]
        return self._skeleton.run_block(block, block_index, self.hidden(batch), arguments)

    def advance(self, block: Callable[..., Any], block_index: int) -> bool:
        """Replace every micro-batch by the block's output. Returns whether all of it is finite."""
        return all(self.step(block, block_index, batch) for batch in range(len(self._batches)))

    def step(self, block: Callable[..., Any], block_index: int, batch: int) -> bool:
        """Replace one micro-batch by the block's output. Returns whether all of it is finite."""
        hidden_BSD = self.forward(block, block_index, batch)
        self._hidden[batch] = self._kept(hidden_BSD)
        return bool(torch.isfinite(hidden_BSD).all())

    def branch(self) -> Self:
        """A second stream that starts where this one is; what neither has passed yet is held once."""
        branch = copy(self)
        branch._hidden = list(self._hidden)
        return branch

    def logits(self, batch: int, window: int) -> Tensor:
        """The logits [S, V] of one sequence of a micro-batch, once the last block is passed."""
        one = slice(window, window + 1)
        return self._skeleton.leave(self.tokens[batch][one], self.hidden(batch)[one])[0]

    def _kept(self, hidden_BSD: Tensor) -> Tensor:
        if not self._on_host:
            return hidden_BSD
        pinned = hidden_BSD.device.type == "cuda"  # a device copies from pageable memory at a fraction of its speed
        return torch.empty_like(hidden_BSD, device="cpu", pin_memory=pinned).copy_(hidden_BSD)
