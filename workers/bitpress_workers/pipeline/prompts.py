"""What zero-shot tasks ask of a model: sequences of many lengths, each run once, and the continuations scored in them.

Shapes: N sequences, S tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bitpress_workers.pipeline.placement import MICRO_BATCH_TOKENS

WIDTH = 16  # micro-batches are padded to a multiple of it: masks and positions are kept for each shape

Tokens = tuple[int, ...]
Answer = tuple[float, bool]  # a continuation's log-likelihood, and whether it is what the model says unasked


@dataclass(frozen=True)
class Prompts:
    """Requests, a context and its continuation each, as sequences by rising length.

    Of a request the last token is not run. Sequences are padded on their right, where a decoder does not look.
    tokens_NS: int64. lengths: without padding. batches: the sequences of each forward. continuations: of each
    sequence, those that are scored where it ends. places: of each request, its sequence and continuation.
    """

    tokens_NS: Tensor
    lengths: tuple[int, ...]
    batches: tuple[range, ...]
    continuations: tuple[tuple[Tokens, ...], ...]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, requests: Sequence[tuple[Tokens, Tokens]], max_length: int) -> Self:
        """requests: what is too long for max_length tokens is cut from the left, as lm-eval does."""
        found: dict[Tokens, dict[Tokens, None]] = {}
        runs = [(context + continuation)[-(max_length + 1) :][:-1] for context, continuation in requests]
        for run, (_, continuation) in zip(runs, requests, strict=True):
            found.setdefault(run, {})[continuation] = None
        sequences = sorted(found, key=lambda run: (len(run), run))
        numbers = {run: number for number, run in enumerate(sequences)}
        continuations = tuple(tuple(found[run]) for run in sequences)
        lengths = tuple(map(len, sequences))
        tokens_NS = torch.zeros(len(sequences), min(padded(lengths[-1]), max_length), dtype=torch.int64)
        for number, run in enumerate(sequences):
            tokens_NS[number, : len(run)] = torch.tensor(run)
        places = (
            (numbers[run], continuations[numbers[run]].index(continuation))
            for run, (_, continuation) in zip(runs, requests, strict=True)
        )
        return cls(tokens_NS, lengths, _batches(lengths), continuations, tuple(places))

    def answers(self, by_sequence: Sequence[Sequence[Answer]]) -> list[Answer]:
        """The answers to all requests, in their order, from those of all sequences."""
        return [by_sequence[sequence][number] for sequence, number in self.places]


def padded(length: int) -> int:
    """The width of a micro-batch whose longest sequence has so many tokens."""
    return -(-length // WIDTH) * WIDTH


def _batches(lengths: Sequence[int]) -> tuple[range, ...]:
    """Forwards of at most MICRO_BATCH_TOKENS tokens, padding included, or of one sequence."""
    batches: list[range] = []
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or padded(lengths[stop]) * (stop + 1 - start) > MICRO_BATCH_TOKENS:
            batches.append(range(start, stop))
            start = stop
    return tuple(batches)
