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


def test_a_prefix_is_removed_with_all_below_and_nothing_beside(store: ArtifactStore) -> None:
    for key in ("t/a/jobs/1/a1/x", "t/a/jobs/1/a2/y/z", "t/a/jobs/11/a1/x"):
        store.put_bytes(key, b"x")
    store.remove("t/a/jobs/1/")
    for key in ("t/a/jobs/1/a1/x", "t/a/jobs/1/a2/y/z"):
        with pytest.raises(StoreError):
            store.get_bytes(key)
    assert store.get_bytes("t/a/jobs/11/a1/x") == b"x"
    store.remove("t/a/jobs/1/")


def test_attempts_of_a_job_never_share_a_key() -> None:
    assert KEY == "t/local/jobs/job_1/a3/blocks/00000.safetensors"
    assert job_key("local", "job_1", 4, "blocks/00000.safetensors") != KEY


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_what_goes_in_comes_out_under_its_key(store: ArtifactStore, root: Path) -> None:
    report = job_key("local", "job_1", 3, "report.json")
    store.put_bytes(KEY, DATA)
    store.put_bytes(report, b"")
    assert store.get_bytes(KEY) == DATA and store.get_bytes(report) == b""
    assert files(root) == {KEY, report}
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


def test_an_object_is_written_once(store: ArtifactStore) -> None:
    store.put_bytes(KEY, DATA)
    with pytest.raises(StoreError, match="exists"):
        store.put_bytes(KEY, b"other")
    assert store.get_bytes(KEY) == DATA


async def test_what_is_not_there_is_named(store: ArtifactStore) -> None:
    with pytest.raises(StoreError, match="blocks"):
        store.get_bytes(KEY)
    with pytest.raises(StoreError, match="blocks"):
        await read(store, 0, 1)


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
    assert files(root) == {KEY, "t/young#2"} and store.get_bytes(KEY) == DATA


def test_a_directory_that_went_away_is_reported(store: ArtifactStore, root: Path) -> None:
    store.ping()
    root.rmdir()
    with pytest.raises(StoreError, match="artifacts"):
        store.ping()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tiny_disk: Path) -> None:
    store = ArtifactStore.from_url(tiny_disk.as_uri())
    with pytest.raises(StoreError, match=r"00000\.safetensors: .*No space left on device"):
        store.put_bytes(KEY, os.urandom(2_000_000))
    assert files(tiny_disk) == set()
    with pytest.raises(StoreError, match="cannot read"):
        store.get_bytes(KEY)
