"""A file on its way: it grows in pieces, in any order and by several threads, and knows after a kill what it has.

Beside `<name>.part` lies `<name>.part.pieces`: first which file it is to be, then a line for each piece that is whole.
A line is written behind its piece, so a process that is killed leaves none that is not.
"""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from bitpress.artifacts import ArtifactFile
from bitpress.errors import ArtifactError

PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `end`, the latter excluded."""

    index: int
    start: int
    end: int


class PartialFile:
    """What is there of a file; `num_bytes` counts it. The file gets its name once it is whole and right."""

    def __init__(self, file: ArtifactFile, target: Path) -> None:
        self.file = file
        self.path = target.with_name(target.name + ".part")
        self._target = target
        self._journal = target.with_name(target.name + ".part.pieces")
        self._lock = threading.Lock()
        self._head = f"{file.sha256} {PIECE_BYTES}\n"
        self._whole = self._read_journal()
        self.num_bytes = sum(piece.end - piece.start for piece in self._pieces() if piece.index in self._whole)

    def open(self) -> list[Piece]:
        """Make room for it on the disk; returns the pieces that are missing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._whole:
            self.path.write_bytes(b"")
            self._journal.write_text(self._head, "ascii")
        return [piece for piece in self._pieces() if piece.index not in self._whole]

    def grow(self, num_bytes: int) -> int:
        """Count bytes that were written; returns how many are there."""
        with self._lock:
            self.num_bytes += num_bytes
            return self.num_bytes

    def complete(self, piece: Piece) -> bool:
        """Note that a piece is whole; true for the last one."""
        with self._lock:
            with self._journal.open("a", encoding="ascii") as journal:
                journal.write(f"{piece.index}\n")
            self._whole.add(piece.index)
            return len(self._whole) == len(self._pieces())

    def finish(self) -> None:
        """Give the whole file its name. Raises ArtifactError, and removes it, when it is not the listed one."""
        self._journal.unlink()
        if not is_right(self.path, self.file):
            found = _sha256(self.path)
            self.path.unlink()
            raise ArtifactError(
                f"{self.file.name}: expected sha256 {self.file.sha256}, found {found}; the file was removed"
            )
        self.path.replace(self._target)

    def _pieces(self) -> list[Piece]:
        size = self.file.bytes
        starts = range(0, size, PIECE_BYTES)
        return [Piece(index, start, min(start + PIECE_BYTES, size)) for index, start in enumerate(starts)]

    def _read_journal(self) -> set[int]:
        """The whole pieces; none when the journal is of another file, or there is nothing that it tells of."""
        if not (self.path.is_file() and self._journal.is_file()):
            return set()
        head, *lines = self._journal.read_text("ascii", "replace").splitlines(keepends=True)
        lines = [line for line in lines if line.endswith("\n")]  # the last one may have been cut short
        return {int(line) for line in lines} if head == self._head else set()


def is_right(path: Path, file: ArtifactFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and _sha256(path) == file.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
