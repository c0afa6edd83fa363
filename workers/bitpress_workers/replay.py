"""`bitpress replay MANIFEST`: a job is run again, and its bytes are held against those that the manifest names."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bitpress.artifacts import MANIFEST, Manifest, Provenance
from bitpress.errors import ArtifactError
from bitpress.jobs import Progress
from bitpress_workers.local_run import run_local


class Replayed(BaseModel):
    """What a second run came to.

    `files`: of each file that a run writes alike, `equal`, `differs`, `missing` (not written again) or `new`.
    `first_differing_block`: its file's name. `changed`: what of the provenance is not as it was, then and now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    equal: bool
    files: dict[str, str]
    first_differing_block: str | None
    changed: dict[str, tuple[str, str]]

    def words(self) -> str:
        """The outcome, a line for each thing to know."""
        number = len(self.files)
        lines = [f"{what}: was {then}, is {now}" for what, (then, now) in self.changed.items()]
        lines += [f"{name}: {found}" for name, found in self.files.items() if found != "equal"]
        if self.equal:
            return "\n".join([*lines, f"all {number} files are equal, byte for byte"])
        unequal = sum(found != "equal" for found in self.files.values())
        first = f"; the first block that differs is {self.first_differing_block}" if self.first_differing_block else ""
        return "\n".join([*lines, f"{unequal} of {number} files are not equal{first}"])


def replay(
    manifest: Path, directory: Path, show: Callable[[Progress], None], device_memory_gib: float | None = None
) -> Replayed:
    """Run a manifest's job into a directory, as `run_local` does, on the devices of this machine; compare the results.

    Files that tell times, the report and the blocks' evidence, are not compared. Raises ArtifactError when there is
    no manifest to read, and what the job raises.
    """
    then = _read(manifest)
    spec = then.spec.model_copy(update={"devices": None})  # no bit depends on their number
    run_local(spec, directory, show, device_memory_gib)
    now = _read(directory / MANIFEST)
    before, after = then.result(), now.result()
    files = {name: _found(before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())}
    blocks = (name for name, found in files.items() if name.startswith("blocks/") and found != "equal")
    return Replayed(
        equal=set(files.values()) == {"equal"},
        files=files,
        first_differing_block=next(blocks, None),
        changed=_changed(then.provenance, now.provenance),
    )


def _read(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ArtifactError(f"{path}: not a manifest: {error.errors(include_url=False)[0]['msg']}") from error


def _found(then: object, now: object) -> str:
    if then is None:
        return "new"
    if now is None:
        return "missing"
    return "equal" if then == now else "differs"


def _changed(then: Provenance | None, now: Provenance | None) -> dict[str, tuple[str, str]]:
    if then is None or now is None:
        return {}
    before, after = dict(then.rows()), dict(now.rows())
    names = dict.fromkeys((*before, *after))
    return {
        name: (before.get(name, "-"), after.get(name, "-")) for name in names if before.get(name) != after.get(name)
    }
