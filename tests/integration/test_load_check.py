"""A job's last step: its artifact, opened from the object store in a fresh process, is what was calibrated."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bucket
import obstore
import pytest
import torch
from obstore.store import from_url
from pipeline_helpers import ignore, make_spec, run

from bitpress.artifacts import ArtifactFile, LoadCheck, Manifest, Report
from bitpress.errors import Cancelled, LoadCheckFailed, StoreError
from bitpress.jobs import JobSpec
from bitpress_workers.local_run import DirectoryRecorder
from bitpress_workers.pipeline.fleet import local_devices, make_local_fleet
from bitpress_workers.pipeline.load_check import LoadChecker, in_fresh_process
from bitpress_workers.pipeline.opening import Opened, Opening, StoredFile, run_artifact
from bitpress_workers.pipeline.run import Site, run_job

SPQR = {"kind": "spqr", "bits": 3}


def spec_of(model: Path, texts: Path) -> JobSpec:
    """A job without evaluation."""
    return make_spec(model, texts, SPQR, evaluation={"datasets": []}, devices=2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    directory = tmp_path_factory.mktemp("checked") / "out"
    run(spec_of(Path(__file__).parents[1] / "data" / "bloom-mini", texts), directory)
    return directory


def model_files(artifact: Path) -> dict[ArtifactFile, str]:
    """What the model is loaded from, with its keys."""
    files = Manifest.model_validate_json((artifact / "manifest.json").read_bytes()).result()
    return {file: name for name, file in files.items()}


@pytest.fixture
def checker(artifact: Path, tmp_path: Path) -> LoadChecker:
    """Expects what the artifact really says."""
    files = {file.name: StoredFile(name, file.sha256) for file, name in model_files(artifact).items()}
    (tmp_path / "open").mkdir()
    opened = run_artifact(Opening(artifact.as_uri(), files, tmp_path / "open", False, 1))
    return LoadChecker(opened.tokens, opened.logits, artifact.as_uri(), tmp_path / "scratch", None, 1, lambda: None)


def test_every_job_opens_what_it_has_made(artifact: Path, mini_model: Path, texts: Path, tmp_path: Path) -> None:
    report = Report.model_validate_json((artifact / "report.json").read_bytes())
    check = run(make_spec(mini_model, texts, SPQR), tmp_path / "out").load_check
    assert report.load_check == check == LoadCheck(
        outcome="equal", opened="whole", num_tokens=32, difference=0.0, tolerance=1e-4, detail="sums in another order"
    )  # fmt: skip
    assert report.problem() is None and report.perplexity == {} and report.error_growth == ()
    for page in ("report.md", "report.html"):
        assert "in a fresh process, the same logits on a prompt of 32 tokens" in (artifact / page).read_text()


def test_a_model_without_room_is_opened_block_by_block(checker: LoadChecker, artifact: Path) -> None:
    found = replace(checker, memory_bytes=1).run(model_files(artifact))
    assert (found.outcome, found.opened, found.difference) == ("equal", "by-block", 0.0)
    assert not checker.scratch.exists() or not any(checker.scratch.iterdir())


def test_logits_that_differ_fail_and_the_artifact_is_kept(checker: LoadChecker, artifact: Path) -> None:
    assert checker.logits is not None
    close, far = (replace(checker, logits=checker.logits * (1 + part)) for part in (1e-5, 1e-2))
    found = close.run(model_files(artifact))
    assert found.outcome == "close" and found.difference == pytest.approx(1e-5, rel=0.1)
    half = replace(checker, logits=checker.logits.to(torch.bfloat16)).run(model_files(artifact))
    assert half.outcome == "close" and "bfloat16" in half.detail
    found = far.run(model_files(artifact))
    assert found.outcome == "failed" and "differ by 0.0099" in found.detail
    report = Report.model_validate_json((artifact / "report.json").read_bytes())
    problem = report.model_copy(update={"load_check": found}).problem()
    assert isinstance(problem, LoadCheckFailed) and "kept" in problem.message


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("name", ["blocks/00002.safetensors", "skeleton.safetensors", "config.json"])
def test_a_file_that_has_changed_fails(checker: LoadChecker, artifact: Path, name: str, by_block: bool) -> None:
    files = {
        file.model_copy(update={"sha256": "0" * 64}) if file.name == name else file: key
        for file, key in model_files(artifact).items()
    }
    found = replace(checker, memory_bytes=1 if by_block else None).run(files)
    assert found.outcome == "failed"
    assert found.detail == f"{name}: its content has changed since it was published"


@pytest.mark.parametrize("by_block", [False, True])
def test_a_block_with_anothers_tensors_fails(checker: LoadChecker, artifact: Path, by_block: bool) -> None:
    """As an index or a key that is wrong would have it."""
    files = model_files(artifact)
    other = next(file for file in files if file.name == "blocks/00001.safetensors")
    swapped = {
        file.model_copy(update={"sha256": other.sha256}) if file.name == "blocks/00002.safetensors" else file: (
            "blocks/00001.safetensors" if file.name == "blocks/00002.safetensors" else key
        )
        for file, key in files.items()
    }
    found = replace(checker, memory_bytes=1 if by_block else None).run(swapped)
    assert found.outcome == "failed" and "missing" in found.detail.lower()


def test_another_tokenizer_fails(checker: LoadChecker, artifact: Path) -> None:
    found = replace(checker, tokens=[*checker.tokens[:-1], 0]).run(model_files(artifact))
    assert found.outcome == "failed" and "tokenizer" in found.detail


def test_what_cannot_be_done_is_said(checker: LoadChecker, artifact: Path) -> None:
    found = replace(checker, logits=None).run(model_files(artifact))
    assert (found.outcome, found.opened) == ("not-done", None) and "evaluation failed" in found.detail
    with pytest.raises(StoreError):  # another attempt may find it again
        checker.run({file: f"elsewhere/{key}" for file, key in model_files(artifact).items()})


def test_it_is_another_process_and_ends_with_a_cancel(checker: LoadChecker, artifact: Path, tmp_path: Path) -> None:
    def cancel() -> None:
        raise Cancelled("the job was cancelled")

    pipe = tmp_path / "never"
    os.mkfifo(pipe)  # opening it waits for a writer, who never comes
    opening = Opening(tmp_path.as_uri(), {"config.json": StoredFile("never", "0" * 64)}, tmp_path / "x", False, 1)
    with pytest.raises(Cancelled):
        in_fresh_process(opening, cancel)
    files = {file.name: StoredFile(key, file.sha256) for file, key in model_files(artifact).items()}
    (tmp_path / "again").mkdir()
    opened = in_fresh_process(Opening(artifact.as_uri(), files, tmp_path / "again", False, 1), lambda: None)
    assert isinstance(opened, Opened) and opened.tokens == checker.tokens
    assert checker.logits is not None and torch.equal(opened.logits, checker.logits)


@pytest.fixture
def store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "served" / "results").mkdir(parents=True)
    with bucket.serving(tmp_path / "served", monkeypatch):
        yield "s3://results/of-jobs"


def test_an_artifact_in_a_bucket_is_opened_from_there(
    store_url: str, opt_mini: Path, texts: Path, tmp_path: Path, checker: LoadChecker
) -> None:
    (tmp_path / "blocks").mkdir()
    recorder = DirectoryRecorder(tmp_path, ignore)
    site = Site(local_devices(), make_local_fleet, store_url, tmp_path / "attempt")
    report = run_job(spec_of(opt_mini, texts), str, recorder, site)
    assert (report.load_check.outcome, report.load_check.opened) == ("equal", "whole")
    assert not (tmp_path / "attempt").exists()
    manifest = Manifest.model_validate_json(bytes(obstore.get(from_url(store_url), "manifest.json").bytes()))
    files = {file: file.name for file in manifest.result().values()}
    by_block = replace(checker, store_url=store_url, memory_bytes=1).run(files)
    assert (by_block.outcome, by_block.opened) == ("failed", "by-block")  # it is another model than the checker's
