"""Where a job's results and progress go: objects into the store, then a record that makes them count.

An object nobody recorded does not exist. A block is two objects: `blocks/00012.safetensors`, equal
bytes for equal jobs, and `blocks/00012.json`, its evidence, which holds times and so is not.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from bitpress.artifacts import MANIFEST, ArtifactFile, BlockReport, LedgerEntry, Manifest, Provenance
from bitpress.errors import ArtifactError, BitpressError, Conflict
from bitpress.jobs import JobSpec, Progress
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.jobstore import BlockRecord

OUTER = "skeleton.safetensors"  # what lies outside the blocks


class Sidecar(BaseModel):
    """The evidence of one published block. `chain` identifies all that went into it and the blocks before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chain: str
    report: BlockReport
    tensors: tuple[str, ...]
    headers: dict[str, dict[str, Any]]
    ledger: tuple[LedgerEntry, ...]


class Released(BitpressError):
    """The attempt ends early and in good order: the job goes to who wants it next."""

    code = "released"


class Recorder(Protocol):
    """Keeps what a job has reached.

    Every call but the last one may raise Cancelled, Released, or Fenced when the job is another's now.
    """

    def blocks(self) -> dict[int, BlockRecord]:
        """Blocks published by earlier attempts."""
        ...

    def block(self, record: BlockRecord) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def log(self, message: str) -> None: ...

    def waiting(self, reason: str) -> None:
        """Show what the job waits for; "": it waits no longer."""
        ...

    def finish(self, files: Mapping[str, str]) -> None:
        """The artifact is complete: object keys by file name, the manifest's among them."""
        ...

    def ended(self, error: BitpressError | None) -> None:
        """This attempt of the job is over, while others of the run may go on."""
        ...


@dataclass(frozen=True)
class Publisher:
    """Puts one job's files into the store, under keys that only this attempt writes."""

    store: ArtifactStore
    key_of: Callable[[str], str]
    recorder: Recorder

    def published(self) -> dict[int, tuple[BlockRecord, Sidecar]]:
        """Blocks of earlier attempts with their evidence; those of independent strategy come in any order."""
        found: dict[int, tuple[BlockRecord, Sidecar]] = {}
        for index, record in sorted(self.recorder.blocks().items()):
            sidecar = Sidecar.model_validate_json(self._verified(record.sidecar_key, record.sidecar_sha256))
            found[index] = (record, sidecar)
        return found

    def block(self, key: str, sidecar: Sidecar) -> BlockRecord:
        """Publish the evidence of a block whose tensors lie at `key`, and record both."""
        data = sidecar.model_dump_json().encode()
        record = record_of(data, key, self.key_of(sidecar_name(sidecar.report.index)))
        self.store.put_bytes(record.sidecar_key, data)
        self.recorder.block(record)
        return record

    def file(self, name: str, data: bytes) -> ArtifactFile:
        """Put one small file."""
        self.store.put_bytes(self.key_of(name), data)
        return ArtifactFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def finish(
        self, spec: JobSpec, fingerprint: str, provenance: Provenance, files: Mapping[ArtifactFile, str]
    ) -> Manifest:
        """Write the manifest over all files (with their keys), last of all, and record the artifact."""
        in_order = tuple(sorted(files, key=lambda file: file.name))
        manifest = Manifest(spec=spec, fingerprint=fingerprint, provenance=provenance, files=in_order)
        self.file(MANIFEST, manifest.model_dump_json(indent=1).encode())
        self.recorder.finish({file.name: key for file, key in files.items()} | {MANIFEST: self.key_of(MANIFEST)})
        return manifest

    def check_same_job(self, sidecar: Sidecar, chain: str) -> None:
        """Raise Conflict when a published block did not come from this spec, model, text and version."""
        if sidecar.chain != chain:
            raise Conflict(
                f"block {sidecar.report.index} was published from another model, text, method or version of "
                "Bitpress; start a new job (or choose another directory)"
            )

    def _verified(self, key: str, sha256: str) -> bytes:
        data = self.store.get_bytes(key)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactError(f"{key}: its content has changed since it was published")
        return data


def record_of(evidence: bytes, key: str, sidecar_key: str) -> BlockRecord:
    """The record of a block whose tensors lie at `key` and whose evidence, a Sidecar as JSON, at `sidecar_key`."""
    report = Sidecar.model_validate_json(evidence).report
    return BlockRecord(
        index=report.index,
        name=block_name(report.index),
        key=key,
        sha256=report.sha256,
        bytes=report.bytes,
        relative_error=report.relative_error,
        sidecar_key=sidecar_key,
        sidecar_sha256=hashlib.sha256(evidence).hexdigest(),
    )


def block_name(index: int) -> str:
    return f"blocks/{index:05d}.safetensors"


def sidecar_name(index: int) -> str:
    return f"blocks/{index:05d}.json"
