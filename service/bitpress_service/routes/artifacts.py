"""What a job made: the list of its files, each file (whole or in ranges), and the report."""

import hashlib
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Header, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel

from bitpress.artifacts import MANIFEST, REPORT, ArtifactFile, Manifest
from bitpress.errors import NotFound
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.auth import KeyedRoute
from bitpress_service.jobstore import JobStore
from bitpress_service.routes.dependencies import (
    ArtifactReader,
    Artifacts,
    JobReader,
    Jobs,
    ServiceSettings,
    accepts,
)

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"], route_class=KeyedRoute)

# What else the report is written as, by media type.
WRITTEN = {"text/markdown": "report.md", "text/html": "report.html"}

# 19 digits hold every file size; int() refuses some thousands of them.
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


class FileList(BaseModel):
    """All files of an artifact, its manifest last."""

    object: Literal["list"] = "list"
    data: tuple[ArtifactFile, ...]


@router.get("/artifacts")
async def list_files(job_id: str, caller: ArtifactReader, jobs: Jobs, artifacts: Artifacts) -> FileList:
    keys = await files_of(jobs, job_id, caller.tenant)
    manifest = await _read(artifacts, keys[MANIFEST])
    return FileList(data=(*Manifest.model_validate_json(manifest).files, _manifest_file(manifest)))


@router.get(
    "/artifacts/{name:path}",
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The range that was asked for"},
        307: {"description": "The file lies at this URL for a while"},
    },
)
async def download(
    job_id: str,
    name: str,
    caller: ArtifactReader,
    jobs: Jobs,
    artifacts: Artifacts,
    settings: ServiceSettings,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """A file by its name in the manifest; its ETag is its SHA-256."""
    keys = await files_of(jobs, job_id, caller.tenant)
    file = await _file(artifacts, keys, name)
    if settings.presign_seconds and (url := artifacts.presign(keys[name], settings.presign_seconds)):
        return RedirectResponse(url, 307)
    etag = f'"{file.sha256}"'
    start, end, status = 0, file.bytes, 200
    if range_ is not None and if_range in (None, etag) and (found := _parse_range(range_, file.bytes)):
        (start, end), status = found, 206
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    return StreamingResponse(artifacts.stream(keys[name], start, end), status, headers, "application/octet-stream")


@router.get("/report", responses={200: {"content": {"application/json": {}} | {kind: {} for kind in WRITTEN}}})
async def report(request: Request, job_id: str, caller: JobReader, jobs: Jobs, artifacts: Artifacts) -> Response:
    """The report as JSON, as text for `Accept: text/markdown`, as a page of its own for `Accept: text/html`."""
    keys = await files_of(jobs, job_id, caller.tenant)
    kind = next((kind for kind in WRITTEN if accepts(request, kind)), None)
    if kind is None:
        return Response(await _read(artifacts, keys[REPORT]), media_type="application/json", headers={"Vary": "Accept"})
    if WRITTEN[kind] not in keys:
        raise NotFound(f"the artifact has no {WRITTEN[kind]}; it was made by another version of Bitpress")
    headers = {"Vary": "Accept", "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(await _read(artifacts, keys[WRITTEN[kind]]), media_type=f"{kind}; charset=utf-8", headers=headers)


async def files_of(jobs: JobStore, job_id: str, tenant: str) -> dict[str, str]:
    """Keys of a job's artifact by file name. Raises NotFound when there is no such job of the tenant, or none."""
    job = await jobs.get(job_id, tenant)
    files = await jobs.files(job_id)
    if not files:
        raise NotFound(f"job {job_id} has no artifact: it is {job.state}")
    return files


async def _file(artifacts: ArtifactStore, keys: dict[str, str], name: str) -> ArtifactFile:
    manifest = await _read(artifacts, keys[MANIFEST])
    if name == MANIFEST:
        return _manifest_file(manifest)
    for file in Manifest.model_validate_json(manifest).files:
        if file.name == name:
            return file
    raise NotFound(f"the artifact has no file {name!r}")


def _manifest_file(data: bytes) -> ArtifactFile:
    return ArtifactFile(name=MANIFEST, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


async def _read(artifacts: ArtifactStore, key: str) -> bytes:
    return await run_in_threadpool(artifacts.get_bytes, key)


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and end (excluded) of a single range (RFC 9110, 14.1.2); None to ignore what is none.

    Raises HTTPException 416 for a range outside of the file.
    """
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(size - int(last), 0), size
    if last and first and int(last) < int(first):
        return None
    if start >= end:
        raise HTTPException(416, f"expected a range within {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, end
