"""What an evaluation says of a result, from the scores of its windows. Shapes: K windows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Self

import torch
from torch import Tensor

from bitpress.artifacts import DivergenceReport, Interval, PartFailure, PerplexityReport, TaskReport
from bitpress.errors import NumericalError
from bitpress_workers.pipeline.calibration import Windows, tokens_sha256
from bitpress_workers.pipeline.scoring import WindowScore

LARGEST_LOSS = 700.0  # exp of more is infinite
RESAMPLES, RESAMPLING_SEED, COVERAGE = 2000, 0, 0.95


@dataclass(frozen=True)
class Quality:
    """What was found, by dataset; error_growth by block; tasks by name."""

    perplexity: dict[str, PerplexityReport] = field(default_factory=dict)
    divergence: dict[str, DivergenceReport] = field(default_factory=dict)
    error_growth: tuple[float, ...] = ()
    tasks: dict[str, TaskReport] = field(default_factory=dict)
    failures: tuple[PartFailure, ...] = ()

    @classmethod
    def failed(cls, code: str, message: str) -> Self:
        """That nothing could be found, and why."""
        return cls(failures=(PartFailure(part="quality", code=code, message=message),))


def quality_of(
    windows: Mapping[str, Windows], scores: Sequence[WindowScore], error_growth: tuple[float, ...]
) -> Quality:
    """Sum up the scores of all datasets' windows, in order. Raises NumericalError where a loss has no perplexity."""
    quality = Quality(error_growth=error_growth)
    start = 0
    for name, of_dataset in windows.items():
        stop = start + len(of_dataset)
        scores_K4 = torch.tensor(scores[start:stop], dtype=torch.float64)
        if not (scores_K4 < LARGEST_LOSS).all():
            raise NumericalError(f"{name}: a window's mean loss is {scores_K4.max():g}, which has no perplexity")
        dense_K, compressed_K, kl_K, agreement_K = scores_K4.unbind(1)
        quality.perplexity[name] = _perplexity(of_dataset, dense_K, compressed_K)
        quality.divergence[name] = DivergenceReport(
            kl=float(kl_K.mean()),
            kl_interval=interval(kl_K),
            agreement=float(agreement_K.mean()),
            agreement_interval=interval(agreement_K),
        )
        start = stop
    return quality


def interval(values_K: Tensor, scale: Callable[[float], float] = float) -> Interval | None:
    """Confidence interval of scale(mean), scale being monotone: percentiles of the means of samples with replacement.

    The same windows are drawn for whatever is measured on them. Source: Efron and Tibshirani 1993, chapter 13.
    """
    count = len(values_K)
    if count < 2:
        return None
    draw = torch.Generator().manual_seed(RESAMPLING_SEED)
    means = [values_K[torch.randint(count, (count,), generator=draw)].mean() for _ in range(RESAMPLES)]
    ends = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=torch.float64)
    low, high = torch.stack(means).quantile(ends).tolist()
    return Interval(low=scale(low), high=scale(high))


def _perplexity(windows: Windows, dense_K: Tensor, compressed_K: Tensor) -> PerplexityReport:
    difference_K = compressed_K - dense_K
    return PerplexityReport(
        dense=exp(dense_K.mean()),
        dense_interval=interval(dense_K, exp),
        compressed=exp(compressed_K.mean()),
        compressed_interval=interval(compressed_K, exp),
        increase_percent=_increase_percent(float(difference_K.mean())),
        increase_interval=interval(difference_K, _increase_percent),
        dense_bits_per_byte=_bits_per_byte(windows, dense_K),
        compressed_bits_per_byte=_bits_per_byte(windows, compressed_K),
        num_windows=len(windows),
        num_tokens=windows.tokens_KS.numel(),
        tokens_sha256=tokens_sha256(windows.tokens_KS),
    )


def _increase_percent(difference: float) -> float:
    return 100 * (exp(difference) - 1)


def _bits_per_byte(windows: Windows, losses_K: Tensor) -> float | None:
    if windows.num_bytes is None:
        return None
    predictions = windows.tokens_KS.shape[1] - 1
    return float(losses_K.sum()) * predictions / log(2) / sum(windows.num_bytes)
