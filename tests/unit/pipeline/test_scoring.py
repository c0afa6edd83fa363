"""What two models' logits say of each other, held against float64 sums written out, and against what must hold."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from bitpress_workers.pipeline.quality import interval
from bitpress_workers.pipeline.scoring import score_window

NUM_TOKENS, VOCABULARY = 21, 37
TOKENS_S = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=torch.Generator().manual_seed(3))


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(NUM_TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_scores_are_the_sums_of_their_definitions() -> None:
    dense_SV, compressed_SV = logits(0), logits(1)
    dense_SV[4, 9] = compressed_SV[4, 9] = 20.0  # one prediction on which both agree
    p_SV, q_SV = (x.double().softmax(1) for x in (dense_SV, compressed_SV))
    losses, divergence, same = [0.0, 0.0], 0.0, 0
    for place in range(NUM_TOKENS - 1):
        for model, x_SV in enumerate((p_SV, q_SV)):
            losses[model] -= log(x_SV[place, TOKENS_S[place + 1]])
        divergence += sum(float(p) * log(p / q) for p, q in zip(p_SV[place], q_SV[place], strict=True))
        same += int(p_SV[place].argmax() == q_SV[place].argmax())

    found = score_window(TOKENS_S, dense_SV, compressed_SV)

    expected = [value / (NUM_TOKENS - 1) for value in (*losses, divergence, same)]
    assert list(found) == pytest.approx(expected, rel=1e-6)
    assert found.agreement >= 1 / (NUM_TOKENS - 1)


def test_a_model_does_not_diverge_from_itself() -> None:
    found = score_window(TOKENS_S, logits(0).bfloat16(), logits(0).bfloat16())

    assert found.dense == found.compressed
    assert (found.divergence, found.agreement) == (0.0, 1.0)


def test_of_a_uniform_model_the_loss_is_the_logarithm_of_the_vocabulary() -> None:
    found = score_window(TOKENS_S, logits(0), torch.zeros(NUM_TOKENS, VOCABULARY))

    assert exp(found.compressed) == pytest.approx(VOCABULARY)
    assert found.divergence >= 0


def test_an_interval_narrows_with_the_root_of_the_number_of_windows() -> None:
    values_K = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_all, of_a_fourth = interval(values_K), interval(values_K[:100])
    assert of_all is not None and of_a_fourth is not None
    assert of_all.low < values_K.mean() < of_all.high
    # That of a normal mean: 2 x 1.96 / sqrt(K).
    assert of_all.high - of_all.low == pytest.approx(3.92 * float(values_K.std()) / 20, rel=0.1)
    assert (of_a_fourth.high - of_a_fourth.low) / (of_all.high - of_all.low) == pytest.approx(2, rel=0.2)


def test_one_window_has_no_interval() -> None:
    assert interval(torch.ones(1, dtype=torch.float64)) is None
