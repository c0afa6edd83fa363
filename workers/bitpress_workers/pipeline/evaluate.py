"""Dense and compressed models on held-out texts, streamed block by block over one fleet: how far they are apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitpress.errors import ArtifactError, BitpressError, Cancelled, NumericalError
from bitpress_service.jobstore import Fenced
from bitpress_workers.pipeline.calibration import Windows
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.member import FleetSpoiled, Member, Members
from bitpress_workers.pipeline.placement import micro_batch_size, micro_batches, share
from bitpress_workers.pipeline.quality import Quality, quality_of
from bitpress_workers.pipeline.shard import Shard, stream_name

DENSE, COMPRESSED = "dense", "compressed"


def surviving(evaluate: Callable[[], None]) -> Quality | None:
    """How `evaluate` fails, None when it does not: a finished compression must outlast its evaluation.

    Raises only what another attempt may get over, and errors after which this one cannot publish either.
    """
    try:
        evaluate()
    except BitpressError as error:
        if error.retryable or isinstance(error, Cancelled | Fenced | ArtifactError):
            raise
        return Quality.failed(error.code, error.message)
    except RuntimeError as error:
        return Quality.failed(BitpressError.code, f"{type(error).__name__}: {error}")
    return None


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the windows of each dataset: the dense model once, and each member's published blocks."""

    fleet: Fleet
    members: Members

    def run(self, windows: Mapping[str, Windows]) -> None:
        """Give their quality to all members that have none yet. Raises NumericalError when the dense model fails."""
        left = self.members.unevaluated()
        if not left or not windows:
            for member in left:
                member.quality = Quality()
            return
        error_growth: dict[int, list[float]] = {member.number: [] for member in left}
        self._start(torch.cat([part.tokens_KS for part in windows.values()]), [DENSE, *map(_stream, left)])
        for index in range(len(left[0].records)):
            self._call(Shard.load, index)
            self._call(Shard.prefetch)
            self._call(Shard.advance, DENSE)
            for member in self.members.unevaluated():
                with self._part(member, on_shards=True):
                    error_growth[member.number].append(self._pass(member, index))
        for member in self.members.unevaluated():
            scores = self._gather(Shard.score, DENSE, _stream(member))
            self._call(Shard.stop, _stream(member))
            with self._part(member, on_shards=False):
                member.quality = quality_of(windows, scores, tuple(error_growth[member.number]))
        self._call(Shard.stop, DENSE)

    @contextmanager
    def _part(self, member: Member, *, on_shards: bool) -> Iterator[None]:
        """As `Members.part`, but numbers that are none end the member's evaluation, not the member."""
        with self.members.part(member, on_shards=on_shards):
            try:
                yield
            except NumericalError as error:
                member.quality = Quality.failed(error.code, error.message)
                if on_shards:
                    raise FleetSpoiled from error

    def _start(self, tokens_KS: Tensor, streams: Sequence[str]) -> None:
        batches = micro_batches(range(len(tokens_KS)), micro_batch_size(tokens_KS.shape[1]))
        groups = [
            [batches[piece] for piece in share(len(batches), self.fleet.size, shard)]
            for shard in range(self.fleet.size)
        ]
        for stream in streams:
            self._call(Shard.start, stream, tokens_KS, groups)

    def _pass(self, member: Member, index: int) -> float:
        """Take a compressed model through a block; returns how far it is from the dense one behind it."""
        member.meter.evaluated(index)
        record, _ = member.records[index]
        self._call(Shard.install_published, record.key, record.sha256)
        self._call(Shard.advance, _stream(member))
        # Summed by micro-batch, in order: the same bits on every fleet.
        squares = torch.tensor(self._gather(Shard.drift, DENSE, _stream(member)), dtype=torch.float64).sum(0)
        return float(squares[0] / squares[1].clamp_min(torch.finfo(torch.float64).tiny))

    def _gather(self, method: Callable[..., list[Any]], *args: str) -> list[Any]:
        return [item for part in self._call(method, *args) for item in part]

    def _call(self, method: Callable[..., Any], *args: Any) -> list[Any]:
        return self.fleet.get(self.fleet.all(method, *args))


def _stream(member: Member) -> str:
    return stream_name(COMPRESSED, member.number)
