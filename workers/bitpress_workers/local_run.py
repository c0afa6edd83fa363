"""`bitpress run SPEC.json --out DIR`: one job in this process, no servers; a directory is the whole state."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitpress.artifacts import Report
from bitpress.errors import Conflict
from bitpress.jobs import Evaluation, JobSpec, Progress
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.fleet import local_devices, make_local_fleet
from bitpress_workers.pipeline.publish import record_of
from bitpress_workers.pipeline.run import Pipeline, Site

MARKER = "bitpress-run.json"  # there while a run is not finished


@dataclass(frozen=True)
class DirectoryRecorder:
    """A block's evidence file, written after its tensors, is its record."""

    directory: Path
    show: Callable[[Progress], None]

    def blocks(self) -> dict[int, BlockRecord]:
        evidence = (self.directory / "blocks").glob("*.json")
        records = (
            record_of(path.read_bytes(), f"blocks/{path.stem}.safetensors", f"blocks/{path.name}") for path in evidence
        )
        return {record.index: record for record in records}

    def block(self, record: BlockRecord) -> None:
        """Nothing left to do: the evidence file is there."""

    def progress(self, progress: Progress) -> None:
        self.show(progress)

    def log(self, message: str) -> None:
        """Progress says it all."""

    def finish(self, files: Mapping[str, str]) -> None:
        """Nothing left to do: the manifest is there."""


def run_local(
    spec: JobSpec, directory: Path, show: Callable[[Progress], None], device_memory_gib: float | None = None
) -> Report:
    """Run a job into `directory`; blocks that an earlier, interrupted run left there are used again.

    device_memory_gib: the operator's limit to what is taken of a device, of this host for CPU cores.
    Raises Conflict when the directory holds a finished artifact or anything that is not of this job.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        return _run_in(directory, spec, show, device_memory_gib)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; the system lets go of it however the process ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{directory}: another run is under way there") from None
        yield
    finally:
        os.close(handle)


def _run_in(
    directory: Path, spec: JobSpec, show: Callable[[Progress], None], device_memory_gib: float | None
) -> Report:
    _open(directory, spec)
    site = Site(
        devices=local_devices().within(device_memory_gib),
        make_fleet=make_local_fleet,
        store_url=directory.resolve().as_uri(),
        key_of=str,
        recorder=DirectoryRecorder(directory, show),
        scratch=directory.resolve() / ".restoring",
    )
    report = Pipeline(spec, site).run()
    (directory / MARKER).unlink()
    return report


def _open(directory: Path, spec: JobSpec) -> None:
    """Mark the directory as this job's while it runs; remove what an interrupted run wrote but did not record."""
    marker, part = directory / MARKER, directory / f"{MARKER}.part"
    if marker.exists():
        _check_same_job(marker, spec)
    elif any(path != part for path in directory.iterdir()):
        raise Conflict(f"{directory} is not empty; choose another directory")
    else:
        # Whole or not at all: without its marker an interrupted run could not go on.
        part.write_text(spec.model_dump_json())
        part.replace(marker)
    for path in directory.rglob("*"):
        recorded = path.parent.name == "blocks" and path.with_suffix(".json").exists()
        if path.is_file() and path != marker and not recorded:
            path.unlink()  # an object is written once, so a leftover must not stand in its way


def _check_same_job(marker: Path, spec: JobSpec) -> None:
    try:
        found = JobSpec.model_validate_json(marker.read_text())
    except ValueError as error:
        raise Conflict(f"{marker} is not the mark of an interrupted run: {error}") from error
    # What does not touch the blocks may differ when a run goes on.
    free: dict[str, object] = {"devices": None, "labels": {}, "evaluation": Evaluation(), "exports": ()}
    if found.model_copy(update=free) != spec.model_copy(update=free):
        raise Conflict(f"{marker.parent} holds an interrupted job with another spec; choose another directory")
