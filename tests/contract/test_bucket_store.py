"""What an artifact store promises over S3. Of the servers nanio checks signatures, moto knows conditional writes."""

import os
import re
import time
from collections.abc import Iterator

import bucket
import httpx2
import pytest

from bitpress.errors import StoreError
from bitpress_service import artifactstore
from bitpress_service.artifactstore import ArtifactStore, job_key, job_prefix

KEY = job_key("acme", "job_1", 3, "blocks/00000.safetensors")
DATA = os.urandom(100_000)
PART_BYTES = 5 * 2**20  # the smallest that S3 takes
PARTS = os.urandom(3 * PART_BYTES + 7)


@pytest.fixture(scope="session")
def nanio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bucket.Server]:
    directory = tmp_path_factory.mktemp("nanio")
    (directory / "bitpress").mkdir()
    with bucket.nanio(directory) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[bucket.Server]:
    with bucket.moto("bitpress") as server:
        yield server


@pytest.fixture(params=["nanio", "moto"])
def server(request: pytest.FixtureRequest) -> bucket.Server:
    found: bucket.Server = request.getfixturevalue(request.param)
    return found


def opened(
    server: bucket.Server, monkeypatch: pytest.MonkeyPatch, prefix: str, secret: str = bucket.SECRET
) -> ArtifactStore:
    for name, value in server.environment(secret=secret).items():
        monkeypatch.setenv(name, value)
    return ArtifactStore.from_url(f"s3://bitpress/{prefix}")


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Of this test alone."""
    return re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def store(server: bucket.Server, monkeypatch: pytest.MonkeyPatch, prefix: str) -> ArtifactStore:
    return opened(server, monkeypatch, prefix)


@pytest.fixture
def signed(nanio: bucket.Server, monkeypatch: pytest.MonkeyPatch, prefix: str) -> ArtifactStore:
    """A store on the server that checks signatures."""
    nanio.requests.clear()
    return opened(nanio, monkeypatch, prefix)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifactstore, "PART_BYTES", PART_BYTES)


def get(url: str, **headers: str) -> httpx2.Response:
    return httpx2.get(url, headers=headers, trust_env=False)


async def read(store: ArtifactStore, start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in store.stream(KEY, start, end)])


async def test_what_goes_in_comes_out_whole_and_in_ranges(store: ArtifactStore) -> None:
    store.ping()
    store.put_bytes(KEY, DATA)
    assert store.get_bytes(KEY) == DATA
    for start, end in ((0, 0), (0, 1), (10, 20), (99_999, 100_000), (0, 100_000)):
        assert await read(store, start, end) == DATA[start:end]


def test_a_prefix_is_removed_with_all_below_and_nothing_beside(store: ArtifactStore) -> None:
    other = job_key("acme-2", "job_1", 3, "report.json")
    for key in (KEY, job_key("acme", "job_1", 4, "report.json"), other):
        store.put_bytes(key, b"x")
    store.remove(job_prefix("acme", "job_1"))
    with pytest.raises(StoreError):
        store.get_bytes(KEY)
    assert store.get_bytes(other) == b"x"


def test_every_tenant_has_a_prefix_of_its_own(signed: ArtifactStore, nanio: bucket.Server, prefix: str) -> None:
    for tenant in ("acme", "nlp"):
        signed.put_bytes(job_key(tenant, "job_1", 1, "report.json"), b"x")
    assert {f"bitpress/{prefix}/t/{tenant}/jobs/job_1/a1/report.json" for tenant in ("acme", "nlp")} <= nanio.files()


def test_another_secret_opens_nothing(nanio: bucket.Server, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    stranger = opened(nanio, monkeypatch, prefix, secret="guessed")
    with pytest.raises(StoreError, match="403"):
        stranger.put_bytes(KEY, DATA)
    with pytest.raises(StoreError):
        stranger.ping()
    assert not any(name.startswith(f"bitpress/{prefix}") for name in nanio.files())


def test_who_has_no_key_is_refused(signed: ArtifactStore, nanio: bucket.Server, prefix: str) -> None:
    signed.put_bytes(KEY, DATA)
    for path in ("", "bitpress?list-type=2", f"bitpress/{prefix}/{KEY}"):
        assert get(f"{nanio.address}/{path}").status_code == 403
    assert httpx2.put(f"{nanio.address}/bitpress/{prefix}/new", content=b"x", trust_env=False).status_code == 403


def test_a_signed_address_reads_one_object_and_its_ranges(signed: ArtifactStore) -> None:
    signed.put_bytes(KEY, DATA)
    url = signed.presign(KEY, 60)
    assert url is not None
    assert get(url).content == DATA
    part = get(url, Range="bytes=10-19")
    assert part.status_code == 206 and part.content == DATA[10:20]
    signed.put_bytes(job_key("nlp", "job_1", 3, "report.json"), b"secret")
    assert get(url.replace(KEY, job_key("nlp", "job_1", 3, "report.json"))).status_code == 403
    assert get(re.sub(r"(X-Amz-Signature=)\w", r"\1_", url)).status_code == 403
    assert get(url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")).status_code == 403
    assert httpx2.put(url, content=b"x", trust_env=False).status_code == 403


def test_a_signed_address_expires(signed: ArtifactStore) -> None:
    signed.put_bytes(KEY, DATA)
    url = signed.presign(KEY, 1)
    assert url is not None
    while (answer := get(url)).status_code == 200:
        time.sleep(0.1)
    assert answer.status_code == 403 and b"expired" in answer.content


@pytest.mark.usefixtures("parts")
def test_a_large_object_goes_up_in_parts_of_a_stated_size(signed: ArtifactStore, nanio: bucket.Server) -> None:
    signed.put_bytes(KEY, PARTS)
    assert signed.get_bytes(KEY) == PARTS
    numbers = {found[1] for line in nanio.requests if (found := re.search(r"^PUT .*partNumber=(\d+)", line))}
    assert numbers == {"1", "2", "3", "4"}
    with pytest.raises(StoreError, match="exists"):
        signed.put_bytes(KEY, PARTS)


@pytest.mark.usefixtures("parts")
def test_an_upload_of_which_a_part_fails_leaves_nothing(
    signed: ArtifactStore, nanio: bucket.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nanio.files()
    monkeypatch.setattr(nanio, "refused", "partNumber=3")
    with pytest.raises(StoreError, match=r"cannot write .*00000\.safetensors"):
        signed.put_bytes(KEY, PARTS)
    assert any(line.startswith("DELETE") and "uploadId=" in line for line in nanio.requests)
    assert nanio.files() == before
    monkeypatch.setattr(nanio, "refused", None)
    signed.put_bytes(KEY, PARTS)  # the next attempt is not in its way
    assert signed.get_bytes(KEY) == PARTS


def test_an_object_is_written_once(moto: bucket.Server, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    store = opened(moto, monkeypatch, prefix)
    store.put_bytes(KEY, DATA)
    with pytest.raises(StoreError, match="exists"):
        store.put_bytes(KEY, b"other")
    assert store.get_bytes(KEY) == DATA
