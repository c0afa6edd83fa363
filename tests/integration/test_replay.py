"""Provenance says what an artifact was made from; a replay makes it again and says whether it is the same."""

import json
from pathlib import Path

import pytest
import yaml
from pipeline_helpers import ignore, make_spec, run
from typer.testing import CliRunner

from bitpress.artifacts import Manifest, Report, is_evidence
from bitpress.errors import ArtifactError
from bitpress_workers.__main__ import app
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.accounts import code_sha256
from bitpress_workers.pipeline.calibration import calibration_tokens, tokens_sha256
from bitpress_workers.replay import replay

RTN = {"kind": "rtn", "bits": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    directory = tmp_path_factory.mktemp("made") / "out"
    spec = make_spec(Path(__file__).parents[1] / "data" / "opt-mini", texts, RTN, devices=2, name="first")
    run(spec, directory)
    return directory


def manifest_of(directory: Path) -> Manifest:
    return Manifest.model_validate_json((directory / "manifest.json").read_bytes())


def test_the_manifest_names_what_went_in(made: Path) -> None:
    manifest = manifest_of(made)
    report = Report.model_validate_json((made / "report.json").read_bytes())
    found = manifest.provenance
    assert found is not None and found == report.provenance
    tokens = calibration_tokens(manifest.spec.calibration, Checkpoint.open(manifest.spec.model.uri).tokenizer())
    assert found.tokens_sha256 == tokens_sha256(tokens)
    assert found.code_sha256 == code_sha256() and len(found.devices) == 2
    assert found.seeds["calibration"] == manifest.spec.calibration.seed
    assert {"torch", "transformers", "python"} <= found.versions.keys()
    assert [cost.part for cost in report.processes] == ["job", "shard 0", "shard 1"]
    stored = sum(file.bytes for file in manifest.files if file.name.endswith(".safetensors"))
    assert sum(cost.bytes_written for cost in report.processes) >= stored
    # Calibration and evaluation each read every block.
    weights = (Path(manifest.spec.model.uri) / "model.safetensors").stat().st_size
    blocks = weights - (made / "skeleton.safetensors").stat().st_size
    assert all(cost.bytes_read > 2 * blocks > 0 for cost in report.processes[1:])


def test_weights_have_one_hash_whatever_the_method_the_shards_and_the_strategy(
    made: Path, opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    other = make_spec(opt_mini, texts, {"kind": "gptq", "bits": 4}, strategy="independent", devices=1)
    run(other, tmp_path / "other")
    first, second = manifest_of(made).provenance, manifest_of(tmp_path / "other").provenance
    assert first and second and first.weights_sha256 == second.weights_sha256
    assert manifest_of(made).fingerprint != manifest_of(tmp_path / "other").fingerprint


def test_a_replay_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["replay", str(made / "manifest.json"), "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    number = len(manifest_of(made).result())
    assert f"all {number} files are equal, byte for byte" in result.stdout
    assert {"README.md", "config.json", "skeleton.safetensors"} < manifest_of(made).result().keys()
    assert {name for name in (file.name for file in manifest_of(made).files) if is_evidence(name)} == {
        "report.json", "report.md", "report.html", *(f"blocks/{index:05d}.json" for index in range(4)),
    }  # fmt: skip
    for name in manifest_of(made).result():
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_replay_names_the_first_block_that_differs(made: Path, tmp_path: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] in ("blocks/00002.safetensors", "blocks/00003.safetensors"):
            file["sha256"] = "0" * 64
    manifest["files"] = [file for file in manifest["files"] if file["name"] != "README.md"]
    manifest["provenance"]["versions"]["torch"] = "1.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "manifest.json"), "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["first_differing_block"] == "blocks/00002.safetensors" and not found["equal"]
    assert found["files"]["blocks/00003.safetensors"] == "differs" and found["files"]["README.md"] == "new"
    assert found["files"]["blocks/00001.safetensors"] == "equal"
    assert found["changed"]["torch"][0] == "1.0"


def test_what_is_no_manifest_is_named(made: Path, tmp_path: Path) -> None:
    for path, words in ((tmp_path / "absent", "cannot be read"), (made / "report.json", "not a manifest")):
        with pytest.raises(ArtifactError, match=words):
            replay(path, tmp_path / "out", ignore)


def test_the_model_card_has_the_metadata_that_hubs_read(made: Path) -> None:
    _, metadata, text = (made / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert found["tags"] == ["bitpress", "rtn", "quantized"] and found["base_model_relation"] == "quantized"
    assert "base_model" not in found, "a directory is no model of a hub"
    report = Report.model_validate_json((made / "report.json").read_bytes())
    (quality,) = report.perplexity.values()
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "perplexity", "value": round(quality.compressed, 4)}]
    assert result["dataset"]["name"] == "evaluation.txt"
    assert f"{report.bits_per_weight:.3f} bits per weight" in text and "seconds" not in text and "first" not in text
