"""What every artifact store promises."""

import os
from pathlib import Path

import pytest

from bitpress.errors import StoreError
from bitpress_service import artifactstore
from bitpress_service.artifactstore import ArtifactStore, job_key

KEY = job_key("local", "job_1", 3, "blocks/00000.safetensors")
DATA = os.urandom(100_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "some where" / "artifacts"


@pytest.fixture
def store(root: Path) -> ArtifactStore:
    return ArtifactStore.from_url(root.as_uri())


async def read(store: ArtifactStore, start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in store.stream(KEY, start, end)])


def test_attempts_of_a_job_never_share_a_key() -> None:
    assert KEY == "t/local/jobs/job_1/a3/blocks/00000.safetensors"
    assert job_key("local", "job_1", 4, "blocks/00000.safetensors") != KEY


async def test_what_goes_in_comes_out(store: ArtifactStore, tmp_path: Path) -> None:
    store.put_bytes(KEY, DATA)
    assert store.get_bytes(KEY) == DATA and store.head(KEY) == len(DATA)
    store.get_file(KEY, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    store.put_file(job_key("local", "job_1", 3, "report.json"), tmp_path / "copy")
    assert sorted(store.list("t/local/jobs/job_1")) == [KEY, "t/local/jobs/job_1/a3/report.json"]
    assert list(store.list("t/local/jobs/job_2")) == []
    assert store.presign(KEY, 60) is None


async def test_a_range_is_exactly_that(store: ArtifactStore) -> None:
    store.put_bytes(KEY, DATA)
    for start, end in ((0, 0), (0, 1), (10, 20), (99_999, 100_000), (0, 100_000)):
        assert await read(store, start, end) == DATA[start:end]


async def test_a_large_object_streams_in_chunks(store: ArtifactStore) -> None:
    data = os.urandom(3 * artifactstore.STREAM_BYTES + 5)
    store.put_bytes(KEY, data)
    chunks = [chunk async for chunk in store.stream(KEY, 1, len(data))]
    assert b"".join(chunks) == data[1:] and len(chunks) > 1


def test_an_object_is_written_once(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_bytes(KEY, DATA)
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(StoreError, match="exists"):
        store.put_bytes(KEY, b"other")
    with pytest.raises(StoreError, match="exists"):
        store.put_file(KEY, tmp_path / "other")
    monkeypatch.setattr(artifactstore, "PART_BYTES", 2)
    with pytest.raises(StoreError, match="exists"):
        store.put_file(KEY, tmp_path / "other")
    assert store.get_bytes(KEY) == DATA


def test_a_file_of_several_parts_arrives_whole(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifactstore, "PART_BYTES", 30_000)
    (tmp_path / "large").write_bytes(DATA)
    store.put_file(KEY, tmp_path / "large")
    assert store.get_bytes(KEY) == DATA


async def test_what_is_not_there_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    for call in (store.get_bytes, store.head, lambda key: store.get_file(key, tmp_path / "copy")):
        with pytest.raises(StoreError, match="blocks"):
            call(KEY)
    with pytest.raises(StoreError, match="blocks"):
        await read(store, 0, 1)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(StoreError, match="absent"):
        store.put_file(KEY, tmp_path / "absent")


@pytest.mark.parametrize("key", ["../outside", "t/../../outside", "t/a//b", "t/./b", "t/\0"])
def test_keys_do_not_lead_out_of_the_store(store: ArtifactStore, root: Path, key: str) -> None:
    (root.parent / "outside").write_bytes(b"secret")
    for call in (store.get_bytes, lambda key: store.put_bytes(key, b"x")):
        with pytest.raises(StoreError):
            call(key)
    assert (root.parent / "outside").read_bytes() == b"secret" and list(root.iterdir()) == []


def test_an_absolute_key_stays_inside(store: ArtifactStore, root: Path) -> None:
    store.put_bytes("/etc/passwd", b"ours")
    assert (root / "etc" / "passwd").read_bytes() == b"ours"


def test_only_its_user_may_look_into_the_directory(store: ArtifactStore, root: Path) -> None:
    assert root.stat().st_mode & 0o077 == 0


def test_an_address_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for url in ((tmp_path / "file" / "below").as_uri(), "file://relative", "nonsense://bucket", "s3:"):
        with pytest.raises(StoreError):
            ArtifactStore.from_url(url)


def test_a_bucket_is_opened_by_the_same_call_and_signs_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    url = ArtifactStore.from_url("s3://bucket/prefix").presign(KEY, 60)
    assert url is not None and url.startswith("https://") and f"bucket/prefix/{KEY}?" in url
    assert "X-Amz-Expires=60" in url


def test_leftovers_of_killed_uploads_are_swept_when_they_are_old(store: ArtifactStore, root: Path) -> None:
    store.put_bytes(KEY, DATA)
    old, young = root / f"{KEY}#1", root / "t" / "young#2"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.sweep()
    assert not old.exists() and young.exists() and store.get_bytes(KEY) == DATA
    assert list(store.list("t")) == [KEY]


def test_a_directory_that_went_away_is_reported(store: ArtifactStore, root: Path) -> None:
    store.ping()
    root.rmdir()
    with pytest.raises(StoreError, match="artifacts"):
        store.ping()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifactstore, "PART_BYTES", 300_000)
    store = ArtifactStore.from_url(tiny_disk.as_uri())
    (tmp_path / "large").write_bytes(os.urandom(2_000_000))
    for put in (
        lambda: store.put_bytes(KEY, (tmp_path / "large").read_bytes()),
        lambda: store.put_file(KEY, tmp_path / "large"),
    ):
        with pytest.raises(StoreError, match=r"00000\.safetensors: .*No space left on device"):
            put()
        assert list(store.list("t")) == []
        with pytest.raises(StoreError, match="cannot read"):
            store.get_bytes(KEY)
