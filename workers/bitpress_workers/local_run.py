"""`bitpress run SPEC.json --out DIR`: a job or a sweep in this process, no servers; a directory is the whole state."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitpress.artifacts import MANIFEST, REPORT, Manifest, Report, parse_report
from bitpress.errors import BitpressError, Conflict
from bitpress.jobs import Evaluation, JobSpec, Progress
from bitpress.sweep_results import Comparison
from bitpress.sweeps import SweepSpec
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.fleet import local_devices, make_local_fleet
from bitpress_workers.pipeline.member import Member, Members
from bitpress_workers.pipeline.publish import record_of
from bitpress_workers.pipeline.report import compared
from bitpress_workers.pipeline.run import Pipeline, Site, run_job

MARKER = "bitpress-run.json"  # there while a run is not finished
COMPARISON = ("comparison.json", "comparison.md")


@dataclass(frozen=True)
class DirectoryRecorder:
    """A block's evidence file, written after its tensors, is its record."""

    directory: Path
    show: Callable[[Progress], None]
    key_of: Callable[[str], str] = str

    def blocks(self) -> dict[int, BlockRecord]:
        evidence = (self.directory / "blocks").glob("*.json")
        records = (
            record_of(
                path.read_bytes(), self.key_of(f"blocks/{path.stem}.safetensors"), self.key_of(f"blocks/{path.name}")
            )
            for path in evidence
        )
        return {record.index: record for record in records}

    def block(self, record: BlockRecord) -> None:
        """Nothing left to do: the evidence file is there."""

    def progress(self, progress: Progress) -> None:
        self.show(progress)

    def log(self, message: str) -> None:
        """Progress says it all."""

    def waiting(self, reason: str) -> None:
        """Nothing to do: threads never wait."""

    def finish(self, files: Mapping[str, str]) -> None:
        """Nothing left to do: the manifest is there."""

    def ended(self, error: BitpressError | None) -> None:
        """Nothing to do: who runs the job has it."""


def run_local(
    spec: JobSpec, directory: Path, show: Callable[[Progress], None], device_memory_gib: float | None = None
) -> Report:
    """Run a job into `directory`; blocks that an earlier, interrupted run left there are used again.

    device_memory_gib: the operator's limit to what is taken of a device, of this host for CPU cores.
    Raises Conflict when the directory holds a finished artifact or anything that is not of this job.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        _open(directory, spec)
        report = run_job(spec, str, DirectoryRecorder(directory, show), _site(directory, device_memory_gib))
        (directory / MARKER).unlink()
        return report


def run_sweep(
    sweep: SweepSpec,
    directory: Path,
    show: Callable[[str, Progress], None],
    device_memory_gib: float | None = None,
) -> Comparison:
    """Run a sweep's members into directories of their own, and compare them in comparison.json and comparison.md.

    What an earlier run has finished or left behind is used again. A member that fails does not keep the others.
    device_memory_gib: as in `run_local`. Raises Conflict when the directory holds anything that is not of this sweep.
    """
    directory.mkdir(parents=True, exist_ok=True)
    specs = dict(zip(sweep.names(), sweep.specs(), strict=True))
    with _alone(directory):
        if foreign := {path.name for path in directory.iterdir()} - {*specs, *COMPARISON}:
            raise Conflict(f"{directory} holds {', '.join(sorted(foreign))}; choose another directory")
        results: dict[str, Report | BitpressError | None]
        results = {name: _finished(directory / name, spec) for name, spec in specs.items()}
        members = {
            name: _member(directory, name, number, spec, show)
            for number, (name, spec) in enumerate(specs.items())
            if results[name] is None
        }
        if members:
            Pipeline(Members(list(members.values())), _site(directory, device_memory_gib)).run()
        for name, member in members.items():
            results[name] = member.report or member.error
            if member.report:
                (directory / name / MARKER).unlink()
        found = {name: (spec, result) for name, spec in specs.items() if (result := results[name])}
        comparison = Comparison.of(found)
        for name, text in zip(COMPARISON, (comparison.model_dump_json(indent=1), compared(comparison)), strict=True):
            (directory / name).write_text(text)
        return comparison


def _member(directory: Path, name: str, number: int, spec: JobSpec, show: Callable[[str, Progress], None]) -> Member:
    place, key_of = directory / name, partial(_key, name)
    place.mkdir(exist_ok=True)
    _open(place, spec)
    return Member(number, spec, key_of, DirectoryRecorder(place, partial(show, name), key_of))


def _key(member: str, file: str) -> str:
    return f"{member}/{file}"


def _finished(directory: Path, spec: JobSpec) -> Report | None:
    """What a member's directory holds when an earlier run has finished it. Raises Conflict when it is another's."""
    manifest = directory / MANIFEST
    if (directory / MARKER).exists() or not manifest.exists():
        return None
    done = Manifest.model_validate_json(manifest.read_text()).spec
    if done.model_copy(update={"devices": spec.devices}) != spec:
        raise Conflict(f"{directory} holds a finished job with another spec; choose another directory")
    return parse_report((directory / REPORT).read_bytes())


def _site(directory: Path, device_memory_gib: float | None) -> Site:
    return Site(
        devices=local_devices().within(device_memory_gib),
        make_fleet=make_local_fleet,
        store_url=directory.resolve().as_uri(),
        scratch=directory.resolve() / ".scratch",
    )


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
    if _of_blocks(found) != _of_blocks(spec):
        raise Conflict(f"{marker.parent} holds an interrupted job with another spec; choose another directory")


def _of_blocks(spec: JobSpec) -> JobSpec:
    """A spec without what does not touch the blocks, which may differ when a run goes on."""
    free: dict[str, object] = {"devices": None, "name": None, "labels": {}, "evaluation": Evaluation(), "gate": None}
    return spec.model_copy(update=free | {"exports": ()})
