"""Perplexity of the dense and the compressed model, streamed block by block over the same fleet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from bitpress.artifacts import PerplexityReport
from bitpress.errors import NumericalError
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.placement import micro_batch_size, micro_batches, share
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.shard import Shard

STREAMS = ("dense", "compressed")
LARGEST_LOSS = 700.0  # exp of more is infinite


@dataclass(frozen=True)
class Perplexities:
    """Evaluates windows [K, S] of each dataset, with the published blocks of `records`."""

    fleet: Fleet
    meter: ProgressMeter
    records: Sequence[BlockRecord]

    def run(self, windows: Mapping[str, Tensor]) -> dict[str, PerplexityReport]:
        """Return both perplexities of every dataset: exp of the mean over windows of the mean loss."""
        if not windows:
            return {}
        tokens_KS = torch.cat(list(windows.values()))
        batches = micro_batches(range(len(tokens_KS)), micro_batch_size(tokens_KS.shape[1]))
        groups = [
            [batches[piece] for piece in share(len(batches), self.fleet.size, shard)]
            for shard in range(self.fleet.size)
        ]
        for stream in STREAMS:
            self.fleet.get(self.fleet.all(Shard.start, stream, tokens_KS, groups))
        for index, record in enumerate(self.records):
            self.meter.evaluated(index)
            self.fleet.get(self.fleet.all(Shard.load, index))
            self.fleet.get(self.fleet.all(Shard.prefetch))
            self.fleet.get(self.fleet.all(Shard.advance, "dense"))
            self.fleet.get(self.fleet.all(Shard.install_published, record.key, record.sha256))
            self.fleet.get(self.fleet.all(Shard.advance, "compressed"))
        dense, compressed = (self._losses(stream) for stream in STREAMS)
        return _by_dataset(windows, dense, compressed)

    def _losses(self, stream: str) -> list[float]:
        losses = [loss for part in self.fleet.get(self.fleet.all(Shard.score, stream)) for loss in part]
        self.fleet.get(self.fleet.all(Shard.stop, stream))
        return losses


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
