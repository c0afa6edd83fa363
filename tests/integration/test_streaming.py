"""Jobs whose weights are streamed: from a bucket as from a directory, one block ahead, and never while they change."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from bucket import serving
from obstore.store import from_url
from pipeline_helpers import make_spec, run
from safetensors.torch import load_file, save_file

from bitpress.errors import CheckpointError, Conflict
from bitpress.jobs import ModelSource, Progress
from bitpress.methods import RTNConfig
from bitpress_workers.local_run import run_local
from bitpress_workers.pipeline.fleet import LocalFleet
from bitpress_workers.pipeline.shard import Shard, ShardConfig, ShardMethod

URI = "s3://models/opt"
GPTQ = {"kind": "gptq", "bits": 3}


@pytest.fixture
def bucket(tmp_path: Path, opt_mini: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The small OPT in a served bucket."""
    (tmp_path / "served" / "models").mkdir(parents=True)
    with serving(tmp_path / "served", monkeypatch):
        for file in opt_mini.iterdir():
            obstore.put(from_url(URI), file.name, file.read_bytes())
        yield URI


def _read_all(uri: str, store: Path) -> tuple[list[str], list[str], str]:
    """What two shards make of a checkpoint: fingerprints of all blocks, twice, and of what is outside them."""
    config = ShardConfig(
        model=ModelSource(uri=uri),
        methods={0: ShardMethod(RTNConfig(bits=4), row_tile=64)},
        device="cpu",
        store_url=store.as_uri(),
        slices=(),
    )
    fleet = LocalFleet(config, 2)
    fingerprints: list[list[str]] = []
    for _ in range(2):  # calibration, then evaluation
        for index in range(4):
            fleet.get(fleet.all(Shard.load, index))
            fingerprints.append(fleet.get(fleet.all(Shard.fingerprint)))
    outer = fleet.get([fleet.on(0, Shard.publish_outer, "outer")])[0].sha256
    fleet.close()
    first, second = zip(*fingerprints, strict=True)
    return list(first), list(second), outer


def test_shards_read_a_bucket_as_they_read_a_directory(bucket: str, opt_mini: Path, tmp_path: Path) -> None:
    first, second, outer = _read_all(str(opt_mini), tmp_path / "one")

    assert first == second and first[:4] == first[4:] and len(set(first)) == 4
    assert _read_all(bucket, tmp_path / "two") == (first, second, outer)


JOBS: dict[str, dict[str, Any]] = {
    "gptq": {
        "method": GPTQ | {"group_size": 32, "symmetric": True},
        "exports": ["dense", "pack_quantized", "gptq"],
    },
    "ptq161": {"method": {"kind": "ptq161", "epochs": 1, "preprocessing": {"rank": 2, "alpha": 4, "steps": 2}}},
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_over_a_bucket_is_the_job_over_the_directory(
    bucket: str, opt_mini: Path, texts: Path, tmp_path: Path, name: str
) -> None:
    """Every file, but for those that tell times and where the model was."""
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 5, "sequence_length": 32}
    files = []
    for uri in (str(opt_mini), bucket):
        out = tmp_path / uri.replace("/", " ")
        spec = make_spec(uri, texts, **JOBS[name], calibration=calibration, devices=2)
        report = run(spec, out)
        written = {path.relative_to(out).as_posix(): _sha256(path) for path in out.rglob("*") if path.is_file()}
        evidence = [path for path in written if path.startswith("blocks/") and path.endswith(".json")]
        for path in ("report.json", "report.md", "report.html", "README.md", "manifest.json", *evidence):
            del written[path]
        files.append((written, list(report.perplexity.values())))
    assert {"skeleton.safetensors", "config.json", "blocks/00003.safetensors"} < files[0][0].keys()
    assert files[0] == files[1]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Interrupted(Exception):
    pass


def _change(directory: Path, tensor: str) -> None:
    """Save the checkpoint anew, with other numbers in one tensor."""
    tensors = load_file(directory / "model.safetensors")
    tensors[tensor] = tensors[tensor] * 2
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_that_changes_under_a_job_stops_it(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(opt_mini, tmp_path / "model"))

    def change(progress: Progress) -> None:
        if progress.blocks_done == 1:
            (model / "model.safetensors").touch()

    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed while it was being read"):
        run_local(make_spec(model, texts, GPTQ, devices=2), tmp_path / "out", change)


def test_a_resumed_job_refuses_another_checkpoint(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(opt_mini, tmp_path / "model"))
    spec = make_spec(model, texts, GPTQ, devices=1)

    def interrupt(progress: Progress) -> None:
        if progress.blocks_done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_local(spec, tmp_path / "out", interrupt)
    _change(model, "model.decoder.layers.1.fc1.weight")

    with pytest.raises(Conflict, match="block 1 was published from another model"):
        run(spec, tmp_path / "out")
