"""Perplexity of the dense and the compressed model, streamed block by block over the same fleet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor

from bitpress.artifacts import PerplexityReport
from bitpress.errors import NumericalError
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.member import Members
from bitpress_workers.pipeline.placement import micro_batch_size, micro_batches, share
from bitpress_workers.pipeline.shard import Shard, stream_name

DENSE, COMPRESSED = "dense", "compressed"
LARGEST_LOSS = 700.0  # exp of more is infinite


@dataclass(frozen=True)
class Perplexities:
    """Evaluates windows [K, S] of each dataset: the dense model once, and each member's published blocks."""

    fleet: Fleet
    members: Members

    def run(self, windows: Mapping[str, Tensor]) -> None:
        """Give every member both perplexities of every dataset: exp of the mean over windows of the mean loss."""
        if not windows:
            return
        streams = {member.number: stream_name(COMPRESSED, member.number) for member in self.members}
        self._start(torch.cat(list(windows.values())), [DENSE, *streams.values()])
        for index in range(len(next(iter(self.members)).records)):
            self._call(Shard.load, index)
            self._call(Shard.prefetch)
            self._call(Shard.advance, DENSE)
            for member in self.members:
                with self.members.part(member, on_shards=True):
                    member.meter.evaluated(index)
                    record, _ = member.records[index]
                    self._call(Shard.install_published, record.key, record.sha256)
                    self._call(Shard.advance, streams[member.number])
        dense = self._losses(DENSE)
        for member in self.members:
            compressed = self._losses(streams[member.number])
            with self.members.part(member, on_shards=False):
                member.perplexity = _by_dataset(windows, dense, compressed)

    def _start(self, tokens_KS: Tensor, streams: Sequence[str]) -> None:
        batches = micro_batches(range(len(tokens_KS)), micro_batch_size(tokens_KS.shape[1]))
        groups = [
            [batches[piece] for piece in share(len(batches), self.fleet.size, shard)]
            for shard in range(self.fleet.size)
        ]
        for stream in streams:
            self._call(Shard.start, stream, tokens_KS, groups)

    def _losses(self, stream: str) -> list[float]:
        losses = [loss for part in self._call(Shard.score, stream) for loss in part]
        self._call(Shard.stop, stream)
        return losses

    def _call(self, method: Callable[..., Any], *args: Any) -> list[Any]:
        return self.fleet.get(self.fleet.all(method, *args))


def _by_dataset(
    windows: Mapping[str, Tensor], dense: Sequence[float], compressed: Sequence[float]
) -> dict[str, PerplexityReport]:
    reports = {}
    start = 0
    for name, tokens_KS in windows.items():
        stop = start + len(tokens_KS)
        reports[name] = PerplexityReport(
            dense=_perplexity(dense[start:stop], f"{name}, dense model"),
            compressed=_perplexity(compressed[start:stop], f"{name}, compressed model"),
            num_tokens=tokens_KS.numel(),
        )
        start = stop
    return reports


def _perplexity(losses: Sequence[float], what: str) -> float:
    mean = sum(losses) / len(losses)
    if not mean < LARGEST_LOSS:
        raise NumericalError(f"{what}: the mean loss is {mean}, which is no perplexity")
    return exp(mean)
