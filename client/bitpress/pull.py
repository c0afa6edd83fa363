"""Fetch an artifact: resumable, every file verified by its hash, the manifest last.

A file grows as `<name>.part` and gets its name only when its sha256 is the listed one. So a file with
a name is whole, and a directory with a manifest.json is a whole artifact.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from bitpress.artifacts import MANIFEST, ArtifactFile, Manifest
from bitpress.errors import ArtifactError, BitpressError, Unavailable
from bitpress.transport import RETRY_SECONDS, Transport

OnBytes = Callable[[ArtifactFile, int], None]
"""Told again and again how many bytes of a file are here."""


def pull(
    transport: Transport, base: str, files: Sequence[ArtifactFile], directory: Path, on_bytes: OnBytes
) -> Manifest:
    """Bring `files` from `base`/<name> into `directory`; what is there already and right stays.

    Raises ArtifactError when a file's hash is not the listed one (the file is removed) or the manifest is
    missing or disagrees with the list; Unavailable when the connection stays lost (the next call goes on
    where this one stopped).
    """
    listed = {file.name: file for file in files}
    if MANIFEST not in listed:
        raise ArtifactError(f"incomplete: {MANIFEST} is not in the list of {len(files)} files")
    if not _is_right(directory / MANIFEST, listed[MANIFEST]):
        (directory / MANIFEST).unlink(missing_ok=True)  # another artifact's, or a damaged one
    for file in sorted(files, key=lambda file: file.name == MANIFEST):
        target = directory / file.name
        if not _is_right(target, file):
            _fetch(transport, f"{base}/{file.name}", file, target, on_bytes)
        on_bytes(file, file.bytes)
    return _read_manifest(directory / MANIFEST, listed)


def _is_right(path: Path, file: ArtifactFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and _sha256(path) == file.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _fetch(transport: Transport, path: str, file: ArtifactFile, target: Path, on_bytes: OnBytes) -> None:
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    _complete(transport, path, file, part, on_bytes)
    if not _is_right(part, file):
        found = _sha256(part)
        part.unlink()
        raise ArtifactError(f"{file.name}: expected sha256 {file.sha256}, found {found}; the file was removed")
    part.replace(target)


def _complete(transport: Transport, path: str, file: ArtifactFile, part: Path, on_bytes: OnBytes) -> None:
    """Let `part` grow to the listed size, going on after lost connections as long as each brings more."""
    part.touch()
    furthest, pauses = part.stat().st_size, iter(RETRY_SECONDS)
    while part.stat().st_size < file.bytes:
        failure: BitpressError
        try:
            _append(transport, path, file, part, on_bytes)
            failure = ArtifactError(f"{file.name}: expected {file.bytes} bytes, found {part.stat().st_size}")
        except Unavailable as error:
            failure = error
        if part.stat().st_size > furthest:
            furthest, pauses = part.stat().st_size, iter(RETRY_SECONDS)
        elif (pause := next(pauses, None)) is not None:
            time.sleep(pause)
        else:
            raise failure


def _append(transport: Transport, path: str, file: ArtifactFile, part: Path, on_bytes: OnBytes) -> None:
    """Add what one response brings; a server that ignores Range sends the file from its start."""
    size = part.stat().st_size
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={size}-"}
    with transport.stream(path, headers, redirects=True) as response:
        if response.status_code != 206:
            size = 0
        with part.open("r+b") as out:
            out.truncate(size)
            out.seek(size)
            for chunk in response.iter_raw():
                out.write(chunk)
                size += len(chunk)
                on_bytes(file, size)
                if size > file.bytes:
                    return  # the hash will tell


def _read_manifest(path: Path, listed: dict[str, ArtifactFile]) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{MANIFEST}: {error.errors(include_url=False)[0]['msg']}") from None
    for file in manifest.files:
        if listed.get(file.name) != file:
            raise ArtifactError(f"{MANIFEST} names {file.name} with sha256 {file.sha256}, which the list does not have")
    return manifest
