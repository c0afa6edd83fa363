"""The demo's model and texts, made from installed packages alone."""

from pathlib import Path

import pytest
import torch
from dense_perplexity import dense_perplexity

from bitpress.errors import CheckpointError
from bitpress_workers.demo_model import FILES, write_demo_model, write_demo_texts
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.calibration import evaluation_windows


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "new" / "smollm2"
    write_demo_model(directory)
    return directory


def test_checkpoint_is_float16_safetensors_with_tokenizer(demo_model: Path) -> None:
    checkpoint = Checkpoint.open(str(demo_model))
    tokenizer = checkpoint.tokenizer()

    assert {info.dtype for info in checkpoint.tensors.values()} == {torch.float16}
    assert len({info.file for info in checkpoint.tensors.values()}) == 1
    assert checkpoint.config.num_hidden_layers == 30
    assert tokenizer.decode(tokenizer("A sentence.").input_ids) == "A sentence."
    assert [path.name for path in demo_model.parent.iterdir()] == ["smollm2"]


def test_model_knows_english(demo_model: Path, texts: Path) -> None:
    checkpoint = Checkpoint.open(str(demo_model))
    windows_KS = evaluation_windows(str(texts / "evaluation.txt"), 512, None, checkpoint.tokenizer()).tokens_KS

    assert len(windows_KS) >= 8
    assert dense_perplexity(checkpoint, windows_KS, 2) < 25


@pytest.mark.slow
def test_perplexity_on_wikitext2(demo_model: Path, shared: Path) -> None:
    checkpoint = Checkpoint.open(str(demo_model))
    text = shared / "data" / "wikitext2" / "wiki.test.txt"
    windows_KS = evaluation_windows(str(text), 512, 24, checkpoint.tokenizer()).tokens_KS

    assert dense_perplexity(checkpoint, windows_KS, 24) == pytest.approx(32.606, rel=1e-4)


def test_model_that_is_there_is_left_alone(demo_model: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in demo_model.iterdir()}
    write_demo_model(demo_model)

    assert {file.name: file.stat().st_mtime_ns for file in demo_model.iterdir()} == before
    assert set(FILES) <= set(before)


def test_directory_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(CheckpointError, match="expected the demo model or nothing, found other files"):
        write_demo_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_texts_share_no_paragraph_and_are_always_the_same(texts: Path, tmp_path: Path) -> None:
    paths = write_demo_texts(tmp_path)
    calibration, evaluation = (path.read_text(encoding="utf-8") for path in paths)

    assert not set(calibration.split("\n\n")) & set(evaluation.split("\n\n"))
    assert len(calibration) > 3 * len(evaluation)
    assert (calibration, evaluation) == tuple((texts / path.name).read_text(encoding="utf-8") for path in paths)
