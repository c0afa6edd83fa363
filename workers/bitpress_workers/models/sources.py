"""Where a checkpoint's files lie: a directory, or a bucket of an object store.

Files are read in ranges, straight into the memory that is to hold them: what is mapped would count as this
process's memory, and weights are never copied whole to a disk. A file that is another one than when the
checkpoint was opened is refused, whenever that is noticed.
"""

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from bitpress.errors import CheckpointError, StoreError

COMPANIONS = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|tokenizer\.model|spiece\.model|chat_template\.\w+"
    r"|(LICENSE|NOTICE|USE_POLICY)(\.\w+)?",
    re.IGNORECASE,
)
SMALL_BYTES = 256 * 2**20  # what is read whole: companions and the index, of which the largest known have 40 MB


class File(Protocol):
    """One file as it was when the checkpoint was opened; `str(file)` is its address."""

    @property
    def size(self) -> int: ...

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start` on.

        Raises CheckpointError, also when the file has changed; StoreError when a store does not answer.
        """
        ...


class Source(Protocol):
    """The files of one checkpoint; `uri` and `revision` open the same one on any host that can reach it.

    companions: a local directory in which config and tokenizer lie.
    """

    uri: str
    revision: str | None
    companions: Path

    def names(self) -> Collection[str]: ...

    def file(self, name: str) -> File:
        """Raises FileNotFoundError."""
        ...


def read_whole(file: File) -> bytes:
    """Read a small file. Raises CheckpointError."""
    if file.size > SMALL_BYTES:
        raise CheckpointError(f"{file}: expected at most {SMALL_BYTES} bytes, found {file.size}")
    content = bytearray(file.size)
    file.read_into(0, memoryview(content))
    return bytes(content)


@dataclass(frozen=True)
class LocalFile:
    path: Path
    size: int
    version: tuple[int, int]

    def __str__(self) -> str:
        return str(self.path)

    def read_into(self, start: int, target: memoryview) -> None:
        done = 0
        with _reporting(self), self.path.open("rb", buffering=0) as opened:
            while done < len(target) and (count := os.preadv(opened.fileno(), [target[done:]], start + done)):
                done += count
            found = os.fstat(opened.fileno())  # after reading: whoever wrote meanwhile is noticed
        if done < len(target) or (found.st_size, _version(found)) != (self.size, self.version):
            raise _changed(self)


class LocalSource:
    """A directory."""

    uri: str
    revision: str | None = None

    def __init__(self, path: Path) -> None:
        self.uri, self.companions = str(path.absolute()), path

    def names(self) -> Collection[str]:
        return {path.name for path in self.companions.iterdir()}

    def file(self, name: str) -> LocalFile:
        found = (self.companions / name).stat()
        return LocalFile(self.companions / name, found.st_size, _version(found))


class HubSource(LocalSource):
    """A model of the hub, read from a snapshot in this host's cache, whose files are links.

    Snapshots are directories that are called as their commit.
    """

    def __init__(self, model: str, snapshot: Path) -> None:
        super().__init__(snapshot)
        self.uri, self.revision = model, snapshot.name


@dataclass(frozen=True)
class BucketFile:
    store: Any
    uri: str
    name: str
    size: int
    version: str | None

    def __str__(self) -> str:
        return f"{self.uri}/{self.name}"

    def read_into(self, start: int, target: memoryview) -> None:
        if not target:  # the store refuses a range of nothing
            return
        with _reporting(self):
            found = obstore.get(self.store, self.name, options={"range": (start, start + len(target))})
            if (found.meta["size"], found.meta["e_tag"]) != (self.size, self.version):
                raise _changed(self)
            target[:] = memoryview(found.bytes())


class BucketSource:
    """The objects right below `s3://bucket/prefix`; credentials and the endpoint come from the environment.

    Companions are downloaded into a directory of this object alone, which goes when it goes.
    Raises CheckpointError when there is no model or it may not be read, StoreError when the store does not answer.
    """

    revision: str | None = None

    def __init__(self, uri: str) -> None:
        if not urlsplit(uri).netloc:
            raise CheckpointError(f"{uri}: expected s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        with _reporting(f"{self.uri}/config.json"):
            self._store = from_url(self.uri)
            obstore.head(self._store, "config.json")  # says what is wrong; a listing that fails does not
            self._objects: Mapping[str, Any] = {
                found["path"]: found for found in obstore.list_with_delimiter(self._store)["objects"]
            }
        self.companions = Path(tempfile.mkdtemp(prefix="bitpress-"))
        weakref.finalize(self, shutil.rmtree, self.companions, ignore_errors=True)
        for name in filter(COMPANIONS.fullmatch, self._objects):
            (self.companions / name).write_bytes(read_whole(self.file(name)))

    def names(self) -> Collection[str]:
        return self._objects.keys()

    def file(self, name: str) -> BucketFile:
        if name not in self._objects:
            raise FileNotFoundError(name)
        found = self._objects[name]
        return BucketFile(self._store, self.uri, name, found["size"], found["e_tag"])


def _version(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_mtime_ns


def _changed(file: File) -> CheckpointError:
    return CheckpointError(f"{file}: changed while it was being read; the checkpoint has to stay as it is")


@contextmanager
def _reporting(what: object) -> Iterator[None]:
    """Tell what is wrong with a checkpoint from a store that may answer next time."""
    try:
        yield
    except (OSError, ValueError, PermissionDeniedError, UnauthenticatedError) as error:
        raise CheckpointError(f"{what}: cannot be read: {_first_line(error)}") from error
    except BaseError as error:
        raise StoreError(f"{what}: cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Behind it the object store's library prints its inner error values."""
    return str(error).splitlines()[0]
