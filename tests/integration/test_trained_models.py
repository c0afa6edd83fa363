"""Trained models, streamed block by block, have the perplexity that was measured with transformers."""

from pathlib import Path

import pytest
from dense_perplexity import dense_perplexity

from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import evaluation_windows


@pytest.mark.parametrize(
    ("model", "text", "num_windows", "expected"),
    [
        ("stories260k", "tinystories/stories.evaluation.txt", 100, 4.337),
        ("opt-mini", "wikitext2/wiki.test.txt", 64, 111.627),
        ("bloom-mini", "wikitext2/wiki.test.txt", 64, 76.932),
    ],
)
def test_perplexity_of_the_dense_model(shared: Path, model: str, text: str, num_windows: int, expected: float) -> None:
    checkpoint = Checkpoint.open(str(shared / "models" / model))
    windows_KS = evaluation_windows(str(shared / "data" / text), 256, num_windows, checkpoint.tokenizer()).tokens_KS

    assert dense_perplexity(checkpoint, windows_KS, num_windows) == pytest.approx(expected, rel=1e-4)
