"""What a job made, over HTTP: lists, files, ranges, reports."""

import hashlib
from pathlib import Path

import bucket
import pytest
import running_api
from running_api import CONTENTS, Api
from service_helpers import job_spec

from bitpress.artifacts import MANIFEST, ArtifactFile, Manifest
from bitpress_service.settings import Settings

BLOCK = "blocks/00000.safetensors"


async def test_files_are_listed_and_come_with_the_hash_they_are_listed_with(api: Api) -> None:
    job = await api.succeeded_job()
    listed = (await api.client.get(f"/v1/jobs/{job.id}/artifacts")).json()
    assert listed["object"] == "list"
    files = [ArtifactFile.model_validate(file) for file in listed["data"]]
    assert [file.name for file in files] == [*CONTENTS, MANIFEST]
    for file in files:
        response = await api.client.get(f"/v1/jobs/{job.id}/artifacts/{file.name}")
        assert response.status_code == 200 and response.content == CONTENTS.get(file.name, response.content)
        assert hashlib.sha256(response.content).hexdigest() == file.sha256
        assert response.headers["etag"] == f'"{file.sha256}"'
        assert response.headers["content-length"] == str(file.bytes)


async def test_the_manifest_says_what_was_done(api: Api) -> None:
    job = await api.succeeded_job()
    response = await api.client.get(f"/v1/jobs/{job.id}/artifacts/{MANIFEST}")
    assert Manifest.model_validate_json(response.content).spec == job.spec


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=100-", 100, 4096), ("bytes=10-19", 10, 20), ("bytes=-6", 4090, 4096),
     ("bytes=4000-9999", 4000, 4096), ("bytes=-9999", 0, 4096)],
)  # fmt: skip
async def test_a_range_is_exactly_that(api: Api, asked: str, start: int, end: int) -> None:
    job = await api.succeeded_job()
    response = await api.client.get(f"/v1/jobs/{job.id}/artifacts/{BLOCK}", headers={"Range": asked})
    assert response.status_code == 206 and response.content == CONTENTS[BLOCK][start:end]
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/4096"


@pytest.mark.parametrize(
    "asked", ["bytes=5-1", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=x-", f"bytes={'9' * 5000}-"]
)
async def test_what_is_no_single_range_is_ignored(api: Api, asked: str) -> None:
    job = await api.succeeded_job()
    response = await api.client.get(f"/v1/jobs/{job.id}/artifacts/{BLOCK}", headers={"Range": asked})
    assert response.status_code == 200 and response.content == CONTENTS[BLOCK]


@pytest.mark.parametrize("asked", ["bytes=4096-", "bytes=5000-6000", "bytes=-0"])
async def test_a_range_beyond_the_end_is_refused(api: Api, asked: str) -> None:
    job = await api.succeeded_job()
    response = await api.client.get(f"/v1/jobs/{job.id}/artifacts/{BLOCK}", headers={"Range": asked})
    assert response.status_code == 416 and response.json()["code"] == "range-not-satisfiable"
    assert response.headers["content-range"] == "bytes */4096"


async def test_a_download_goes_on_only_with_the_same_file(api: Api) -> None:
    job = await api.succeeded_job()
    url = f"/v1/jobs/{job.id}/artifacts/{BLOCK}"
    etag = (await api.client.get(url)).headers["etag"]
    same = await api.client.get(url, headers={"Range": "bytes=100-", "If-Range": etag})
    assert same.status_code == 206 and same.content == CONTENTS[BLOCK][100:]
    changed = await api.client.get(url, headers={"Range": "bytes=100-", "If-Range": '"other"'})
    assert changed.status_code == 200 and changed.content == CONTENTS[BLOCK]


async def test_the_report_is_json_text_or_a_page(api: Api) -> None:
    job = await api.succeeded_job()
    as_json = await api.client.get(f"/v1/jobs/{job.id}/report")
    assert as_json.headers["content-type"] == "application/json" and as_json.content == CONTENTS["report.json"]
    as_text = await api.client.get(f"/v1/jobs/{job.id}/report", headers={"Accept": "text/markdown"})
    assert as_text.headers["content-type"] == "text/markdown; charset=utf-8"
    assert as_text.content == CONTENTS["report.md"]
    as_page = await api.client.get(f"/v1/jobs/{job.id}/report", headers={"Accept": "text/html"})
    assert as_page.headers["content-type"] == "text/html; charset=utf-8"
    assert as_page.headers["content-security-policy"].startswith("default-src 'none'")
    assert as_page.content == CONTENTS["report.html"]


async def test_a_job_without_an_artifact_says_so(api: Api) -> None:
    job, _ = await api.jobs.create("local", job_spec())
    for path in ("artifacts", "artifacts/report.json", "report"):
        response = await api.client.get(f"/v1/jobs/{job.id}/{path}")
        assert response.status_code == 404
        assert response.json()["detail"] == f"job {job.id} has no artifact: it is queued"


@pytest.mark.parametrize("name", ["absent.json", "..%2F..%2Fapi-key", "%2Fetc%2Fpasswd", "blocks", "a%00b"])
async def test_only_files_of_the_manifest_are_served(api: Api, name: str) -> None:
    job = await api.succeeded_job()
    response = await api.client.get(f"/v1/jobs/{job.id}/artifacts/{name}")
    assert response.status_code == 404 and response.json()["code"] == "not-found"


async def test_an_object_that_is_gone_is_an_error_and_no_empty_file(api: Api, tmp_path: Path) -> None:
    job = await api.succeeded_job()
    (manifest,) = (tmp_path / "artifacts" / "t" / "local" / "jobs" / job.id).rglob(MANIFEST)
    manifest.unlink()
    response = await api.client.get(f"/v1/jobs/{job.id}/artifacts")
    assert response.status_code == 503 and response.json()["code"] == "unavailable"


@pytest.mark.parametrize("presign_seconds", [0, 60])
async def test_files_in_a_bucket_come_through_the_api_or_from_an_address(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presign_seconds: int
) -> None:
    (tmp_path / "buckets" / "bitpress").mkdir(parents=True)
    settings = Settings(
        state_dir=tmp_path, redis_url=redis_url, storage_url="s3://bitpress/a", presign_seconds=presign_seconds
    )
    with bucket.serving(tmp_path / "buckets", monkeypatch):
        async with running_api.serving(settings) as api:
            job = await api.succeeded_job()
            address = f"/v1/jobs/{job.id}/artifacts/{BLOCK}"
            response = await api.client.get(address, headers={"Range": "bytes=10-19"})
            if presign_seconds:
                assert response.status_code == 307
                response = await api.client.get(response.headers["location"], headers={"Authorization": ""})
                assert response.status_code == 200 and response.content == CONTENTS[BLOCK]
            else:
                assert response.status_code == 206 and response.content == CONTENTS[BLOCK][10:20]
