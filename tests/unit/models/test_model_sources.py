"""Where a checkpoint's bytes come from: a directory and a bucket give the same, and what changes is refused."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
import torch
from bucket import serving
from obstore.store import from_url
from safetensors.torch import load_file, save_file
from small_models import build

from bitpress.errors import CheckpointError, StoreError
from bitpress_workers.models import checkpoint as reading
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.headers import DTYPES, read_header
from bitpress_workers.models.skeleton import Skeleton
from bitpress_workers.models.sources import LocalSource

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Place:
    """A model's directory, or the objects below a prefix."""

    uri: str

    def write(self, name: str, content: bytes) -> None:
        if self.uri.startswith("s3://"):
            obstore.put(from_url(self.uri), name, content)
        else:
            (Path(self.uri) / name).write_bytes(content)

    def remove(self, name: str) -> None:
        if self.uri.startswith("s3://"):
            obstore.delete(from_url(self.uri), name)
        else:
            (Path(self.uri) / name).unlink()


@pytest.fixture
def bucket(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The prefix of a bucket below which the same model lies as in the directory `llama`."""
    (tmp_path / "served" / "models").mkdir(parents=True)
    with serving(tmp_path / "served", monkeypatch):
        place = Place("s3://models/small/llama")
        for file in llama.iterdir():
            place.write(file.name, file.read_bytes())
        yield place


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, llama: Path, bucket: Place) -> Place:
    return bucket if request.param == "bucket" else Place(str(llama))


@pytest.mark.parametrize("piece_bytes", [1000, 2**20])
def test_tensors_are_those_of_the_file(
    place: Place, llama: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", piece_bytes)
    checkpoint, stored = Checkpoint.open(place.uri), load_file(llama / WEIGHTS)

    read = checkpoint.read(checkpoint.tensors)

    assert {name: (t.dtype, t.shape, t.tolist()) for name, t in read.items()} == {
        name: (t.dtype, t.shape, t.tolist()) for name, t in stored.items()
    }
    assert all(str(info.file) == f"{place.uri}/{WEIGHTS}" for info in checkpoint.tensors.values())


def test_shards_and_companions_of_a_bucket(bucket: Place, tmp_path: Path) -> None:
    build("opt").save_pretrained(tmp_path / "opt", max_shard_size="20KB")
    (tmp_path / "opt" / "LICENSE").write_text("free")
    (tmp_path / "opt" / "code.py").write_text("raise SystemExit")
    for file in (tmp_path / "opt").iterdir():
        Place("s3://models/opt").write(file.name, file.read_bytes())
    checkpoint, local = Checkpoint.open("s3://models/opt/"), Checkpoint.open(str(tmp_path / "opt"))

    read, expected = (opened.read(opened.tensors) for opened in (checkpoint, local))

    assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in expected)
    assert {file.name for file in checkpoint.companion_files()} == {file.name for file in local.companion_files()}
    assert {file.name for file in checkpoint.path.iterdir()} == {"LICENSE", "config.json", "generation_config.json"}


def test_what_was_downloaded_goes_with_the_checkpoint(bucket: Place) -> None:
    checkpoint = Checkpoint.open(bucket.uri)
    directory = checkpoint.path
    assert directory.stat().st_mode & 0o077 == 0

    del checkpoint
    gc.collect()

    assert not directory.exists()


def _longer(content: bytes) -> bytes:
    return content + b"more"


def _shorter(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _other(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("change", [_longer, _shorter, _other])
def test_weights_that_change_are_refused(place: Place, llama: Path, change: Callable[[bytes], bytes]) -> None:
    checkpoint = Checkpoint.open(place.uri)
    checkpoint.read(["lm_head.weight"])

    place.write(WEIGHTS, change((llama / WEIGHTS).read_bytes()))

    with pytest.raises(CheckpointError, match=f"{place.uri}/{WEIGHTS}: changed while it was being read"):
        checkpoint.read(["lm_head.weight"])


def test_a_file_put_in_the_place_of_another_is_refused_whatever_its_time(llama: Path) -> None:
    checkpoint, stat = Checkpoint.open(str(llama)), (llama / WEIGHTS).stat()

    (llama / "new").write_bytes((llama / WEIGHTS).read_bytes())
    os.utime(llama / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (llama / "new").replace(llama / WEIGHTS)

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        checkpoint.read(["lm_head.weight"])


def test_weights_that_are_gone(place: Place) -> None:
    checkpoint = Checkpoint.open(place.uri)
    place.remove(WEIGHTS)

    with pytest.raises(CheckpointError, match=f"{place.uri}/{WEIGHTS}: cannot be read"):
        checkpoint.read(["lm_head.weight"])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://models/none", "s3://models/none/config.json: cannot be read: "),
        ("s3://nowhere/none", "s3://nowhere/none/config.json: cannot be read: "),
        ("s3://models/small", "s3://models/small/config.json: cannot be read: "),
        ("s3://", "expected s3://bucket/prefix"),
    ],
)
def test_bucket_that_holds_no_checkpoint(bucket: Place, uri: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(uri)


def test_bucket_that_is_not_ours(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")

    with pytest.raises(CheckpointError, match=r"cannot be read: .*403"):
        Checkpoint.open(bucket.uri)


def test_a_store_that_does_not_answer_may_do_so_next_time(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served" / "models").mkdir(parents=True)
    place = Place("s3://models/llama")
    with serving(tmp_path / "served", monkeypatch):
        for file in llama.iterdir():
            place.write(file.name, file.read_bytes())
        checkpoint = Checkpoint.open(place.uri)
    # nobody listens any more

    with pytest.raises(StoreError, match=f"{place.uri}/{WEIGHTS}: cannot be read"):
        checkpoint.read(["lm_head.weight"])


def test_bucket_has_no_revisions(bucket: Place) -> None:
    with pytest.raises(CheckpointError, match="a bucket have none"):
        Checkpoint.open(bucket.uri, "main")


def test_companion_that_is_too_large(bucket: Place, tmp_path: Path) -> None:
    with (tmp_path / "served" / "models" / "small" / "llama" / "tokenizer.json").open("wb") as file:
        file.truncate(2**28 + 1)

    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected at most 268435456 bytes"):
        Checkpoint.open(bucket.uri)


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it ends after 0 bytes, its header after 8"),
        (b"\xff" * 8, "its header would have 18446744073709551615 bytes"),
        ((100).to_bytes(8, "little") + b"{}", "it ends after 10 bytes, its header after 108"),
        (_safetensors(b"{"), "Expecting property name"),
        (_safetensors(b"[" * 200_000), "recursion"),
        (_safetensors([]), "expected a JSON object as its header, found list"),
        (_safetensors({"a": 1}), "1 validation error"),
        (_safetensors({"a": _entry(shape=[-2])}), "1 validation error"),
        (_safetensors({"a": _entry(shape=[3])}, bytes(4)), "a takes 4 bytes; by its shape and dtype it has 6"),
        (_safetensors({"a": _entry()}, bytes(5)), "its tensors do not fill it"),
        (_safetensors({"a": _entry()}, bytes(3)), "its tensors do not fill it"),
        (_safetensors({"a": _entry(), "b": _entry()}, bytes(4)), "its tensors do not fill it"),
        (_safetensors({"a": _entry(data_offsets=[4, 8])}, bytes(8)), "its tensors do not fill it"),
    ],
)
def test_malformed_header(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)

    with pytest.raises(CheckpointError) as caught:
        read_header(LocalSource(tmp_path).file(WEIGHTS))

    assert caught.value.message.startswith(f"{tmp_path / WEIGHTS}: not a complete safetensors file: ")
    assert message in caught.value.message


def test_dtype_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(_safetensors({"a": _entry(dtype="F4")}, bytes(4)))

    with pytest.raises(CheckpointError, match="a has the dtype F4, which is not read"):
        read_header(LocalSource(tmp_path).file(WEIGHTS))


def test_scalars_empty_tensors_and_every_dtype(llama: Path) -> None:
    stored = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        **{str(dtype): torch.ones(3, dtype=dtype) for dtype in DTYPES.values()},
    }
    save_file(stored, llama / WEIGHTS)
    checkpoint = Checkpoint.open(str(llama))

    read = checkpoint.read(stored)

    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {
        name: (t.dtype, t.shape) for name, t in stored.items()
    }
    assert all(torch.equal(read[name].float(), tensor.float()) for name, tensor in stored.items())


def test_a_block_read_ahead_is_the_block(place: Place) -> None:
    skeleton = Skeleton(Checkpoint.open(place.uri))
    expected = skeleton.load_block(1).state_dict()

    skeleton.prefetch_block(1)

    ahead = skeleton.load_block(1).state_dict()
    assert all(torch.equal(ahead[name], expected[name]) for name in expected)


def test_another_block_than_the_one_read_ahead(llama: Path) -> None:
    skeleton = Skeleton(Checkpoint.open(str(llama)))
    expected = skeleton.load_block(2).state_dict()
    skeleton.prefetch_block(1)

    found = skeleton.load_block(2).state_dict()

    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_block_that_was_read_ahead_needs_its_file_no_more(place: Place) -> None:
    skeleton = Skeleton(Checkpoint.open(place.uri))
    skeleton.prefetch_block(1)
    skeleton.prefetch_block(2)  # waits for block 1, which nobody takes
    skeleton.prefetch_block(2)
    skeleton.load_block(2)
    place.remove(WEIGHTS)

    with pytest.raises(CheckpointError, match="cannot be read"):
        skeleton.load_block(2)  # handed out once


def test_what_went_wrong_ahead_is_said_when_the_block_is_loaded(llama: Path) -> None:
    skeleton = Skeleton(Checkpoint.open(str(llama)))
    (llama / WEIGHTS).touch()
    skeleton.prefetch_block(1)

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        skeleton.load_block(1)
