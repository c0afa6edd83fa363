"""How far two models have come apart: hidden states behind each block, predictions behind the last.

Shapes: S tokens of a window, V vocabulary, P predictions taken at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.placement import cut
from bitpress_workers.pipeline.prompts import Answer, Prompts, Tokens

PIECES = 8  # Logits are the widest tensors of a job; their logarithms are taken for an eighth of a window at once.


class WindowScore(NamedTuple):
    """Means over a window's S - 1 next-token predictions.

    dense, compressed: negative log-likelihood, in nats. divergence: Kullback-Leibler, of the compressed model's
    distribution from the dense one's, in nats. agreement: share of predictions whose most likely token is the same.
    """

    dense: float
    compressed: float
    divergence: float
    agreement: float


@torch.no_grad()
def score(dense: Activations, compressed: Activations) -> list[WindowScore]:
    """Compare what both models predict for the same windows; one window's logits of each are there at a time."""
    return [
        score_window(tokens_S, dense.logits(batch, window), compressed.logits(batch, window))
        for batch, tokens_BS in enumerate(dense.tokens)
        for window, tokens_S in enumerate(tokens_BS)
    ]


def score_window(tokens_S: Tensor, dense_SV: Tensor, compressed_SV: Tensor) -> WindowScore:
    """Compare two models' logits, of any float dtype; logarithms are float32, sums float64."""
    sums = torch.zeros(4, dtype=torch.float64, device=dense_SV.device)
    next_S = tokens_S.to(dense_SV.device)
    for piece in cut(len(tokens_S) - 1, PIECES):
        targets_P1 = next_S[piece.start + 1 : piece.stop + 1, None]
        p_PV, q_PV = (log_softmax(logits[piece.start : piece.stop].float(), 1) for logits in (dense_SV, compressed_SV))
        same_P = p_PV.argmax(1) == q_PV.argmax(1)
        losses = [-log_PV.gather(1, targets_P1).double().sum() for log_PV in (p_PV, q_PV)]
        divergence_P = p_PV.exp().mul_(p_PV - q_PV).sum(1).clamp_min(0)  # below 0 by rounding alone
        sums += torch.stack([*losses, divergence_P.double().sum(), same_P.sum().double()])
    return WindowScore(*(sums / (len(tokens_S) - 1)).tolist())


@torch.no_grad()
def last_logits(activations: Activations) -> list[Tensor]:
    """The logits [1, V] that every sequence ends with, on the host."""
    return [activations.logits(batch, place)[-1:].cpu().clone() for batch, place, _ in activations.sequences()]


@torch.no_grad()
def answer(activations: Activations, prompts: Prompts) -> list[list[Answer]]:
    """What a model makes of the continuations of each of a stream's sequences."""
    found = []
    for batch, place, sequence in activations.sequences():
        logits_SV = activations.logits(batch, place)[: prompts.lengths[sequence]]
        found.append([score_continuation(logits_SV, tokens) for tokens in prompts.continuations[sequence]])
    return found


def score_continuation(logits_SV: Tensor, continuation: Tokens) -> Answer:
    """Score a continuation whose predictions end with the logits' last row, as lm-eval does."""
    log_CV = log_softmax(logits_SV[-len(continuation) :].float(), 1)
    targets_C = torch.tensor(continuation, device=log_CV.device)
    likelihood = log_CV.gather(1, targets_C[:, None]).sum()
    return float(likelihood), bool((log_CV.argmax(1) == targets_C).all())


@torch.no_grad()
def drift(dense: Activations, compressed: Activations) -> list[tuple[float, float]]:
    """Of each micro-batch: the squared difference of the hidden states, and the dense model's squares."""
    found = []
    for batch in range(len(dense)):
        dense_BSD = dense.hidden(batch).float()
        difference_BSD = compressed.hidden(batch).float() - dense_BSD
        squares = [float(x.square().sum(dtype=torch.float64)) for x in (difference_BSD, dense_BSD)]
        found.append((squares[0], squares[1]))
    return found
