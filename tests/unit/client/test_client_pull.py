"""Downloads over a real connection that breaks, lies and comes back."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from http_answers import SPEC, Respond, send

from bitpress.artifacts import MANIFEST, ArtifactFile
from bitpress.client import Client
from bitpress.errors import ArtifactError, BitpressError, Unavailable
from bitpress.partial_file import PartialFile

BLOCK = bytes(range(256)) * 40
CONTENT = {"blocks/00000.safetensors": BLOCK, "config.json": b"{}", "empty.txt": b""}
Start = Callable[[Respond], str]


def listed(name: str, data: bytes) -> dict[str, object]:
    return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest(content: dict[str, bytes]) -> bytes:
    files = [listed(name, data) for name, data in content.items()]
    return json.dumps({"spec": SPEC, "fingerprint": "0" * 64, "files": files}).encode()


@dataclass
class Store:
    """Serves an artifact; `cuts` are the sizes after which the next responses break off."""

    content: dict[str, bytes] = field(default_factory=lambda: {MANIFEST: manifest(CONTENT)} | CONTENT)
    list_of: dict[str, bytes] | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.removeprefix("/v1/jobs/job_1/artifacts").lstrip("/")
        if not name:
            files = [listed(name, data) for name, data in (self.list_of or self.content).items()]
            return send(handler, 200, {"object": "list", "data": files})
        asked = handler.headers.get("Range")
        self.asked.append((name, asked))
        data, start = self.content[name], 0
        handler.send_response(206 if self.ranges else 200)
        if self.ranges:
            assert asked is not None
            start, last = map(int, asked.removeprefix("bytes=").split("-"))
            data = data[: last + 1]
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/*")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(data)
        handler.wfile.write(data[start:end])
        handler.close_connection = end < len(data)
        return None


def holds(directory: Path, content: dict[str, bytes] = CONTENT) -> bool:
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return files == {MANIFEST: manifest(CONTENT)} | content


def test_every_file_is_fetched_and_the_manifest_last(serve: Start, tmp_path: Path) -> None:
    store, seen = Store(), {}
    with Client(serve(store)) as client:
        pulled = client.pull("job_1", tmp_path / "deep" / "out", lambda file, size: seen.update({file.name: size}))
    assert holds(tmp_path / "deep" / "out")
    assert store.asked[-1][0] == MANIFEST
    assert {file.name for file in pulled.files} == set(CONTENT)
    assert seen == {name: len(data) for name, data in store.content.items()}


def test_a_lost_connection_goes_on_where_it_broke(serve: Start, tmp_path: Path) -> None:
    store = Store({MANIFEST: manifest({"b": BLOCK}), "b": BLOCK}, cuts=[1, 4000, 10, 100])
    with Client(serve(store)) as client:
        client.pull("job_1", tmp_path)
    assert (tmp_path / "b").read_bytes() == BLOCK
    starts = [f"bytes={start}-10239" for start in (0, 1, 4001, 4011, 4111)]
    assert [asked for name, asked in store.asked if name == "b"] == starts


def test_a_connection_that_stays_lost_is_reported_and_the_next_pull_goes_on(serve: Start, tmp_path: Path) -> None:
    store = Store({MANIFEST: manifest({"b": BLOCK}), "b": BLOCK}, cuts=[3000, 0, 0, 0])
    with Client(serve(store)) as client:
        with pytest.raises(Unavailable, match="no answer from http://127"):
            client.pull("job_1", tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"b.part", "b.part.pieces"}
        client.pull("job_1", tmp_path)
    assert (tmp_path / "b").read_bytes() == BLOCK
    assert {path.name for path in tmp_path.iterdir()} == {"b", MANIFEST}


def test_pieces_that_are_there_are_not_asked_for_again(
    serve: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitpress.partial_file.PIECE_BYTES", 4096)
    store = Store({MANIFEST: manifest({"b": BLOCK}), "b": BLOCK})
    part = PartialFile(ArtifactFile.model_validate(listed("b", BLOCK)), tmp_path / "b")
    _, second, _ = part.open()
    part.path.write_bytes(b"?" * 4096 + BLOCK[4096:8192])
    part.complete(second)
    with (tmp_path / "b.part.pieces").open("a") as journal:
        journal.write("0")  # a line that was cut short
    seen: list[int] = []
    with Client(serve(store)) as client:
        client.pull("job_1", tmp_path, lambda file, size: seen.append(size) if file.name == "b" else None)
    assert {asked for name, asked in store.asked if name == "b"} == {"bytes=0-4095", "bytes=8192-10239"}
    assert (tmp_path / "b").read_bytes() == BLOCK
    assert seen[0] == 4096 and seen[-1] == len(BLOCK) and seen == sorted(seen)


def test_pieces_of_another_file_do_not_count(serve: Start, tmp_path: Path) -> None:
    other = PartialFile(ArtifactFile.model_validate(listed("b", b"x" * len(BLOCK))), tmp_path / "b")
    (piece,) = other.open()
    other.path.write_bytes(b"x" * len(BLOCK))
    other.complete(piece)
    store = Store({MANIFEST: manifest({"b": BLOCK}), "b": BLOCK})
    with Client(serve(store)) as client:
        client.pull("job_1", tmp_path)
    assert (tmp_path / "b").read_bytes() == BLOCK


def test_a_server_without_ranges_sends_the_file_again(serve: Start, tmp_path: Path) -> None:
    store = Store(ranges=False, cuts=[3000])
    with Client(serve(store)) as client:
        client.pull("job_1", tmp_path)
    assert holds(tmp_path)


def test_a_second_pull_fetches_nothing(serve: Start, tmp_path: Path) -> None:
    store = Store()
    with Client(serve(store)) as client:
        client.pull("job_1", tmp_path)
        store.asked.clear()
        client.pull("job_1", tmp_path)
    assert store.asked == []


def test_a_damaged_file_is_fetched_again(serve: Start, tmp_path: Path) -> None:
    store = Store()
    with Client(serve(store)) as client:
        client.pull("job_1", tmp_path)
        (tmp_path / "config.json").write_bytes(b"[]")
        store.asked.clear()
        client.pull("job_1", tmp_path)
    assert [name for name, _ in store.asked] == ["config.json"]
    assert holds(tmp_path)


def test_a_wrong_hash_is_refused_and_the_file_removed(serve: Start, tmp_path: Path) -> None:
    right = Store().content
    store = Store(right | {"blocks/00000.safetensors": b"x" * len(BLOCK)}, list_of=right)
    with Client(serve(store)) as client, pytest.raises(ArtifactError, match=r"blocks/00000\.safetensors: expected sha"):
        client.pull("job_1", tmp_path)
    assert list((tmp_path / "blocks").iterdir()) == []
    assert not (tmp_path / MANIFEST).exists()


def test_another_artifacts_manifest_does_not_stay_beside_half_an_artifact(serve: Start, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"of another artifact")
    store = Store({MANIFEST: manifest({"b": BLOCK}), "b": BLOCK}, cuts=[10, 0, 0, 0])
    with Client(serve(store)) as client, pytest.raises(Unavailable):
        client.pull("job_1", tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_a_shorter_file_than_listed_is_an_error(serve: Start, tmp_path: Path) -> None:
    right = Store().content
    store = Store(right | {"blocks/00000.safetensors": BLOCK[:-1]}, list_of=right, ranges=False)
    with Client(serve(store)) as client, pytest.raises(ArtifactError, match="expected 10240 bytes, found 10239"):
        client.pull("job_1", tmp_path)


def test_no_manifest_no_artifact(serve: Start, tmp_path: Path) -> None:
    store = Store(CONTENT)
    with Client(serve(store)) as client, pytest.raises(ArtifactError, match=r"manifest\.json is not in the list"):
        client.pull("job_1", tmp_path)
    assert store.asked == []


def test_a_manifest_must_agree_with_the_list(serve: Start, tmp_path: Path) -> None:
    store = Store({MANIFEST: manifest(CONTENT | {"gone.txt": b"?"})} | CONTENT)
    with Client(serve(store)) as client, pytest.raises(ArtifactError, match=r"names gone\.txt"):
        client.pull("job_1", tmp_path)


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "blocks/../../escape", ".hidden", "a//b", "a\\b"])
def test_a_name_that_leaves_the_directory_is_refused(serve: Start, tmp_path: Path, name: str) -> None:
    store = Store({MANIFEST: manifest(CONTENT), name: b"evil"})
    with Client(serve(store)) as client, pytest.raises(BitpressError, match="not understood"):
        client.pull("job_1", tmp_path / "out")
    assert store.asked == []
    assert not (tmp_path / "out").exists()


def test_the_key_does_not_follow_a_redirect_to_another_host(serve: Start, tmp_path: Path) -> None:
    store, keys = Store(), []

    def storage(handler: BaseHTTPRequestHandler) -> None:
        keys.append(handler.headers.get("Authorization"))
        store(handler)

    storage_url = serve(storage)

    def api(handler: BaseHTTPRequestHandler) -> None:
        assert handler.headers["Authorization"] == "Bearer secret"
        if handler.path.endswith("artifacts"):
            return store(handler)
        handler.send_response(307)
        handler.send_header("Location", storage_url + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return None

    with Client(serve(api), "secret") as client:
        client.pull("job_1", tmp_path)
    assert holds(tmp_path)
    assert keys == [None] * 3  # the empty file is not asked for
