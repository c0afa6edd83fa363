"""Fetch an artifact: several files and pieces of files at once, every file verified by its hash, the manifest last.

A file has its name only when its sha256 is the listed one. So a file with a name is whole, and a directory with a
manifest.json is a whole artifact. A pull that was killed goes on where it stopped.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pydantic import ValidationError

from bitpress.artifacts import MANIFEST, ArtifactFile, Manifest
from bitpress.errors import ArtifactError, Unavailable
from bitpress.partial_file import PartialFile, Piece, is_right
from bitpress.transport import RETRY_SECONDS, Transport

CONNECTIONS = 8

OnBytes = Callable[[ArtifactFile, int], None]
"""Told again and again how many bytes of a file are here, by one thread at a time."""


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
    if not is_right(directory / MANIFEST, listed[MANIFEST]):
        (directory / MANIFEST).unlink(missing_ok=True)  # another artifact's, or a damaged one
    for group in ([file for file in files if file.name != MANIFEST], [listed[MANIFEST]]):
        _Fetch(transport, base, directory, on_bytes).bring(group)
    return _read_manifest(directory / MANIFEST, listed)


class _Fetch:
    """Files on their way into a directory."""

    def __init__(self, transport: Transport, base: str, directory: Path, on_bytes: OnBytes) -> None:
        self._transport = transport
        self._base = base
        self._directory = directory
        self._on_bytes = on_bytes
        self._telling = threading.Lock()
        self._stop = threading.Event()

    def bring(self, files: Sequence[ArtifactFile]) -> None:
        """Return once all are there; the first failure ends the others."""
        with ThreadPoolExecutor(CONNECTIONS, "pull") as pool:
            try:
                begun = list(pool.map(self._begin, files))
                for done in as_completed(
                    [pool.submit(self._bring_piece, part, piece) for part, pieces in begun for piece in pieces]
                ):
                    done.result()
            except BaseException:  # Ctrl-C as well
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _begin(self, file: ArtifactFile) -> tuple[PartialFile, list[Piece]]:
        """The file with its missing pieces; none when it is there."""
        target = self._directory / file.name
        part = PartialFile(file, target)
        if is_right(target, file):
            self._tell(file, file.bytes)
            return part, []
        pieces = part.open()
        self._tell(file, part.num_bytes)
        if not pieces:
            part.finish()
        return part, pieces

    def _bring_piece(self, part: PartialFile, piece: Piece) -> None:
        """Go on after lost connections as long as each brings more."""
        at, pauses = piece.start, iter(RETRY_SECONDS)
        while at < piece.end:
            before, failure = at, None
            try:
                for num_bytes in self._read(part, at, piece.end):
                    at += num_bytes
            except Unavailable as error:
                failure = error
            if self._stop.is_set():
                return
            if at > before:
                pauses = iter(RETRY_SECONDS)
            elif (pause := next(pauses, None)) is not None:
                time.sleep(pause)
            else:
                raise failure or ArtifactError(f"{part.file.name}: expected {part.file.bytes} bytes, found {at}")
        if part.complete(piece):
            part.finish()

    def _read(self, part: PartialFile, start: int, end: int) -> Iterator[int]:
        """Write what one response brings of `start` to `end`; yields how many bytes each time."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        path = f"{self._base}/{part.file.name}"
        with (
            self._transport.stream(path, headers, redirects=True) as response,
            part.path.open("r+b") as out,
        ):
            # A server that ignores Range sends the file from its start.
            before = 0 if response.status_code == 206 else start
            out.seek(start)
            for chunk in response.iter_raw():
                wanted = chunk[before : before + end - out.tell()]
                before = max(before - len(chunk), 0)
                out.write(wanted)
                self._tell(part.file, part.grow(len(wanted)))
                yield len(wanted)
                if out.tell() == end or self._stop.is_set():
                    return

    def _tell(self, file: ArtifactFile, num_bytes: int) -> None:
        with self._telling:
            self._on_bytes(file, num_bytes)


def _read_manifest(path: Path, listed: dict[str, ArtifactFile]) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{MANIFEST}: {error.errors(include_url=False)[0]['msg']}") from None
    for file in manifest.files:
        if listed.get(file.name) != file:
            raise ArtifactError(f"{MANIFEST} names {file.name} with sha256 {file.sha256}, which the list does not have")
    return manifest
