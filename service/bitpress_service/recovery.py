"""Jobs made again of what lies in the artifact store, when Redis and all that it held was lost.

A job whose manifest is there had ended with a complete artifact. Every file that the manifest lists is looked for among
the objects of the job's attempts and read once: a job is taken in only when its artifact is whole.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from bitpress.artifacts import MANIFEST, REPORT, ArtifactFile, Manifest, Report
from bitpress.errors import ArtifactError, StoreError
from bitpress.jobs import Failure, JobState
from bitpress_service.artifactstore import ArtifactStore, Object, place_of
from bitpress_service.jobstore import BlockRecord
from bitpress_service.redis_client import PREFIX, reporting_unavailable
from bitpress_service.redis_records import Scripts, block_arguments, created_at, facets, failure_json


@dataclass(frozen=True)
class Finding:
    """What became of a job's objects; `why` a damaged one was not taken in."""

    job_id: str
    tenant: str
    state: Literal["taken-in", "known", "unfinished", "damaged"]
    why: str = ""


@dataclass(frozen=True)
class _Objects:
    """All objects of a job: by the fence of their attempt, the last one first, then by their name."""

    tenant: str
    job_id: str
    by_fence: Mapping[int, Mapping[str, Object]]

    def find(self, artifacts: ArtifactStore, file: ArtifactFile) -> str:
        """Key of the object that is this file. Raises ArtifactError."""
        for objects in self.by_fence.values():
            found = objects.get(file.name)
            if found and found.bytes == file.bytes and artifacts.sha256(found.key) == file.sha256:
                return found.key
        raise ArtifactError(f"{file.name}: no object has the sha256 {file.sha256} that the manifest lists")


@dataclass(frozen=True)
class _Ended:
    """A job as its artifact tells of it."""

    manifest: Manifest
    keys: Mapping[str, str]
    report: Report | None
    finished_at: int


class Recovery(Scripts):
    """Raises Unavailable when Redis cannot be reached, StoreError when the artifact store cannot be listed."""

    async def take_in(self, artifacts: ArtifactStore) -> AsyncIterator[Finding]:
        """Every job that has objects, and what became of it; those that are known are left as they are."""
        for objects in await asyncio.to_thread(_jobs, artifacts):
            with reporting_unavailable():
                is_known = await self._client.exists(f"{PREFIX}job:{objects.job_id}")
            if is_known:
                yield Finding(objects.job_id, objects.tenant, "known")
            elif not any(MANIFEST in names for names in objects.by_fence.values()):
                yield Finding(objects.job_id, objects.tenant, "unfinished")
            else:
                yield await self._take_in(artifacts, objects)

    async def _take_in(self, artifacts: ArtifactStore, objects: _Objects) -> Finding:
        try:
            ended = await asyncio.to_thread(_read, artifacts, objects)
            await self._adopt(objects, ended)
        except (ArtifactError, StoreError, ValueError) as error:
            return Finding(objects.job_id, objects.tenant, "damaged", str(error))
        return Finding(objects.job_id, objects.tenant, "taken-in")

    async def _adopt(self, objects: _Objects, ended: _Ended) -> None:
        spec, attempts = ended.manifest.spec, len(objects.by_fence)
        problem = ended.report.problem() if ended.report else None
        failure = None
        if problem:
            failure = Failure(code=problem.code, message=problem.message, retryable=False, attempt=attempts)
        blocks = [part for block in _blocks(ended) for part in block_arguments(block)[:2]]
        await self._run(
            "adopt", objects.job_id, objects.tenant, JobState.FAILED if problem else JobState.SUCCEEDED,
            failure_json(failure), spec.model_dump_json(), json.dumps(dict(ended.keys)), created_at(objects.job_id),
            ended.finished_at, attempts, max(objects.by_fence), *facets(spec), spec.devices or "", *blocks,
        )  # fmt: skip


def _jobs(artifacts: ArtifactStore) -> list[_Objects]:
    found: dict[tuple[str, str], dict[int, dict[str, Object]]] = defaultdict(lambda: defaultdict(dict))
    for each in artifacts.objects("t/"):
        if place := place_of(each.key):
            found[place.tenant, place.job_id][place.fence][place.name] = each
    return [
        _Objects(tenant, job_id, dict(sorted(by_fence.items(), reverse=True)))
        for (tenant, job_id), by_fence in found.items()
    ]


def _read(artifacts: ArtifactStore, objects: _Objects) -> _Ended:
    """The artifact of the last attempt that completed one. Raises ArtifactError, ValueError."""
    last = next(names[MANIFEST] for names in objects.by_fence.values() if MANIFEST in names)
    try:
        manifest = Manifest.model_validate_json(artifacts.get_bytes(last.key))
    except ValidationError as error:
        raise ArtifactError(f"{MANIFEST}: {error.errors(include_url=False)[0]['msg']}") from None
    keys = {file.name: objects.find(artifacts, file) for file in manifest.files}
    try:
        report = Report.model_validate_json(artifacts.get_bytes(keys[REPORT])) if REPORT in keys else None
    except ValidationError:
        report = None  # another version's
    return _Ended(manifest, keys | {MANIFEST: last.key}, report, round(last.written_at.timestamp() * 1000))


def _blocks(ended: _Ended) -> list[BlockRecord]:
    hashes = {file.name: file.sha256 for file in ended.manifest.files}
    records = []
    for block in ended.report.blocks if ended.report else ():
        name = f"blocks/{block.index:05d}"
        tensors, sidecar = f"{name}.safetensors", f"{name}.json"
        if tensors in hashes and sidecar in hashes:
            records.append(
                BlockRecord(
                    index=block.index,
                    name=tensors,
                    key=ended.keys[tensors],
                    sha256=block.sha256,
                    bytes=block.bytes,
                    relative_error=block.relative_error,
                    sidecar_key=ended.keys[sidecar],
                    sidecar_sha256=hashes[sidecar],
                )
            )
    return records
