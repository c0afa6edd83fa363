"""Which models and texts a service reads, whatever a spec calls them."""

from pathlib import Path

import pytest

from bitpress.errors import SourceNotAllowed
from bitpress.jobs import JobSpec, parse_spec
from bitpress_service.settings import Settings
from bitpress_service.sources import ModelEntry, Sources


def spec(model: str, text: str = "c4", held_out: str = "wikitext2") -> JobSpec:
    return parse_spec(
        {
            "model": {"uri": model},
            "method": {"kind": "rtn", "bits": 4},
            "calibration": {"dataset": text},
            "evaluation": {"datasets": [held_out]},
        }
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("models/opt", "models/owner/bloom", "models-of-others/secret"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "opt"}')
    (tmp_path / "models" / "link").symlink_to(tmp_path / "models-of-others" / "secret")
    return tmp_path


@pytest.fixture
def sources(root: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setenv("BITPRESS_MODEL_ROOTS", str(root / "models"))
    monkeypatch.setenv("BITPRESS_MODEL_BUCKETS", "s3://models/public,s3://more/")
    monkeypatch.setenv("BITPRESS_MODEL_HUB", "facebook,bigscience/bloom-560m")
    monkeypatch.setenv("BITPRESS_TEXT_ROOTS", str(root / "texts"))
    return Sources.of(Settings(state_dir=root / "state"))


@pytest.mark.parametrize(
    "uri",
    ["{}/models/opt", "{}/models/owner/../opt/", "s3://models/public/opt", "s3://models/public", "s3://more", "s3://more/x/y",
     "facebook/opt-125m", "bigscience/bloom-560m"],
)  # fmt: skip
def test_what_is_named_is_read(sources: Sources, root: Path, uri: str) -> None:
    sources.check(spec(uri.format(root)))


@pytest.mark.parametrize(
    "uri",
    ["{}/models-of-others/secret", "{}/models/../models-of-others/secret", "{}/models/link", "/", "../models/opt",
     "s3://models/private", "s3://models/publicity/opt", "s3://models/public/../private", "s3://",
     "facebook2/opt-125m", "bigscience/bloom", "opt", "file:///etc", "https://example.com/model", "gs://models/public",
     "~/model", "a/b/c"],
)  # fmt: skip
def test_nothing_else_is(sources: Sources, root: Path, uri: str) -> None:
    with pytest.raises(SourceNotAllowed, match="/v1/models") as refused:
        sources.check(spec(uri.format(root)))
    assert [path for path, _ in refused.value.details] == ["/model/uri"]


def test_a_relative_directory_is_no_hub_id(sources: Sources, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "facebook" / "opt").mkdir(parents=True)
    monkeypatch.chdir(root)
    with pytest.raises(SourceNotAllowed):
        sources.check(spec("facebook/opt"))


def test_texts_are_looked_at_as_well(sources: Sources, root: Path) -> None:
    inside, outside = str(root / "texts" / "a.txt"), "/etc/b.txt"
    sources.check(spec("facebook/opt", inside, str(root / "models" / "opt" / "held-out.txt")))
    with pytest.raises(SourceNotAllowed) as refused:
        sources.check(spec("facebook/opt", outside, outside))
    assert [path for path, _ in refused.value.details] == ["/calibration/dataset", "/evaluation/datasets/0"]
    (root / "texts").mkdir()
    (root / "texts" / "link.txt").symlink_to("/etc/passwd")
    with pytest.raises(SourceNotAllowed):
        sources.check(spec("facebook/opt", str(root / "texts" / "link.txt")))


def test_without_settings_a_job_reads_what_its_user_may(tmp_path: Path) -> None:
    Sources.of(Settings(state_dir=tmp_path)).check(spec("/anywhere", "/else/text.txt"))


def test_models_are_listed_by_path_and_links_are_not_followed(sources: Sources, root: Path) -> None:
    assert sources.models() == [
        ModelEntry(uri=str(root / "models" / name), model_type="opt") for name in ("opt", "owner/bloom")
    ]
    (root / "models" / "opt" / "config.json").write_text("[1]")
    assert sources.models()[0].model_type is None


def test_one_setting_limits_all(tmp_path: Path) -> None:
    sources = Sources.of(Settings(state_dir=tmp_path, model_hub=("facebook",)))
    with pytest.raises(SourceNotAllowed) as refused:
        sources.check(spec(str(tmp_path), str(tmp_path / "text.txt")))
    assert len(refused.value.details) == 2
