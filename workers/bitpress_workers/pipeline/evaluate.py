"""Dense and compressed models on held-out texts, streamed block by block over one fleet: how far they are apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitpress.artifacts import PartFailure
from bitpress.errors import ArtifactError, BitpressError, Cancelled, NumericalError
from bitpress_service.jobstore import Fenced
from bitpress_workers.pipeline.calibration import Windows
from bitpress_workers.pipeline.fleet import Fleet
from bitpress_workers.pipeline.member import FleetSpoiled, Member, Members, MembersEnded
from bitpress_workers.pipeline.placement import micro_batch_size, micro_batches, share
from bitpress_workers.pipeline.prompts import Answer
from bitpress_workers.pipeline.quality import Quality, quality_of
from bitpress_workers.pipeline.scoring import answer, drift, last_logits, score
from bitpress_workers.pipeline.shard import Shard, stream_name

if TYPE_CHECKING:
    from bitpress_workers.pipeline.zero_shot import ZeroShot

DENSE, COMPRESSED, PROMPT, ASKED = "dense", "compressed", "prompt", "asked"


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
    except (MembersEnded, FleetSpoiled):
        raise
    except Exception as error:  # a defect here must not cost hours of work there
        return Quality.failed(BitpressError.code, f"{type(error).__name__}: {error}")
    return None


@dataclass
class Evaluator:
    """Evaluates the windows of each dataset: the dense model once, and each member's published blocks.

    prompt: int64 [1, P], the tokens that artifacts are checked with; the same blocks take it along, and what
    zero-shot tasks ask.
    """

    fleet: Fleet
    members: Members
    prompt: Tensor
    zero_shot: "ZeroShot | None" = None
    _shards: range = range(0)

    def run(self, windows: Mapping[str, Windows]) -> None:
        """Give quality and logits to all members without. Raises NumericalError when the dense model fails."""
        left = self.members.unevaluated()
        if not left:
            return
        tokens_KS = torch.cat([part.tokens_KS for part in windows.values()]) if windows else self.prompt[:0]
        error_growth: dict[int, list[float]] = {member.number: [] for member in left}
        self._shards = range(self.fleet.size if windows or self.zero_shot else 1)  # a prompt alone is one shard's work
        batches = micro_batches(range(len(tokens_KS)), micro_batch_size(tokens_KS.shape[1]))
        self._start([DENSE, *map(_stream, left)], tokens_KS, self._shared(batches))
        self._start(list(map(_prompt, left)), self.prompt, [[range(1)], *[[]] * (self.fleet.size - 1)])
        if self.zero_shot:
            asked = self.zero_shot.prompts
            self._start([ASKED, *map(_asked, left)], asked.tokens_NS, self._shared(asked.batches), asked.lengths)
        for index in range(len(left[0].records)):
            self._call(Shard.load, index)
            self._call(Shard.prefetch)
            self._advance(DENSE, ASKED)
            for member in self.members.unevaluated():
                with self._part(member, on_shards=True):
                    error_growth[member.number].append(self._pass(member, index))
        dense_answers = self._answers(ASKED)
        for member in self.members.unevaluated():
            (member.logits,) = self._measure(last_logits, _prompt(member))
            scores = self._measure(score, DENSE, _stream(member))
            answers = self._answers(_asked(member))
            self._call(Shard.stop, _stream(member))
            self._call(Shard.stop, _prompt(member))
            with self._part(member, on_shards=False):
                growth = tuple(error_growth[member.number]) if windows else ()
                member.quality = self._judged(quality_of(windows, scores, growth), dense_answers, answers)
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

    def _start(
        self,
        streams: Sequence[str],
        tokens_NS: Tensor,
        groups: Sequence[Sequence[range]],
        lengths: Sequence[int] | None = None,
    ) -> None:
        for stream in streams:
            self._call(Shard.start, stream, tokens_NS, groups, lengths)

    def _shared(self, batches: Sequence[range]) -> list[list[range]]:
        """Each shard's micro-batches."""
        size = self.fleet.size
        return [[batches[piece] for piece in share(len(batches), size, shard)] for shard in range(size)]

    def _advance(self, stream: str, asked: str) -> None:
        self._call(Shard.advance, stream)
        if self.zero_shot:
            self._call(Shard.advance, asked)

    def _answers(self, asked: str) -> list[Answer]:
        """A model's answers to all that the tasks ask."""
        if self.zero_shot is None:
            return []
        by_sequence = self._measure(answer, asked, args=(self.zero_shot.prompts,))
        self._call(Shard.stop, asked)
        return self.zero_shot.prompts.answers(by_sequence)

    def _judged(self, quality: Quality, dense: Sequence[Answer], compressed: Sequence[Answer]) -> Quality:
        """With what the tasks say, or why they say nothing; what else was found is kept."""
        if self.zero_shot is None:
            return quality
        try:
            return replace(quality, tasks=self.zero_shot.reports(dense, compressed))
        except Exception as error:  # whatever lm-eval makes of the answers
            failure = PartFailure(part="tasks", code=BitpressError.code, message=f"{type(error).__name__}: {error}")
            return replace(quality, failures=(failure,))

    def _pass(self, member: Member, index: int) -> float:
        """Take a compressed model through a block; returns how far it is from the dense one behind it."""
        member.meter.evaluated(index)
        record, _ = member.records[index]
        self._call(Shard.install_published, record.key, record.sha256)
        self._advance(_stream(member), _asked(member))
        self._call(Shard.advance, _prompt(member))
        # Summed by micro-batch, in order: the same bits on every fleet.
        drifts = self._measure(drift, DENSE, _stream(member))
        squares = torch.tensor(drifts, dtype=torch.float64).view(-1, 2).sum(0)
        return float(squares[0] / squares[1].clamp_min(torch.finfo(torch.float64).tiny))

    def _measure(self, measure: Callable[..., list[Any]], *streams: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """What is found on the streams of all shards, in the sequences' order."""
        return [item for part in self._call(Shard.measure, measure, streams, *args) for item in part]

    def _call(self, method: Callable[..., Any], *args: Any) -> list[Any]:
        return self.fleet.get([self.fleet.on(shard, method, *args) for shard in self._shards])


def _stream(member: Member) -> str:
    return stream_name(COMPRESSED, member.number)


def _prompt(member: Member) -> str:
    return stream_name(PROMPT, member.number)


def _asked(member: Member) -> str:
    return stream_name(ASKED, member.number)
