"""`bitpress run SPEC.json --out DIR`: one job in this process, no servers; a directory is the whole state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitpress.artifacts import Report
from bitpress.errors import Conflict
from bitpress.jobs import JobSpec, Progress
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.fleet import LocalFleet, local_devices
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


def run_local(spec: JobSpec, directory: Path, show: Callable[[Progress], None]) -> Report:
    """Run a job into `directory`; blocks that an earlier, interrupted run left there are used again.

    Raises Conflict when the directory holds a finished artifact or anything that is not of this job.
    """
    _open(directory, spec)
    site = Site(
        devices=local_devices(),
        make_fleet=LocalFleet,
        store_url=directory.resolve().as_uri(),
        key_of=str,
        recorder=DirectoryRecorder(directory, show),
    )
    report = Pipeline(spec, site).run()
    (directory / MARKER).unlink()
    return report


def _open(directory: Path, spec: JobSpec) -> None:
    """Mark the directory as this job's while it runs; remove what an interrupted run wrote but did not record."""
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / MARKER
    if marker.exists():
        if _what(JobSpec.model_validate_json(marker.read_text())) != _what(spec):
            raise Conflict(f"{directory} holds an interrupted job with another spec; choose another directory")
    elif any(directory.iterdir()):
        raise Conflict(f"{directory} is not empty; choose another directory")
    for path in directory.rglob("*"):
        recorded = path.parent.name == "blocks" and path.with_suffix(".json").exists()
        if path.is_file() and not recorded:
            path.unlink()  # an object is written once, so a leftover must not stand in its way
    marker.write_text(spec.model_dump_json())


def _what(spec: JobSpec) -> JobSpec:
    """The spec without what may differ when a run goes on."""
    return spec.model_copy(update={"devices": None, "labels": {}})
