"""Where bytes lie: a directory or a bucket, with the same calls.

Objects are written once and never changed. A write becomes visible whole or not at all; what counts
as part of an artifact is said by the job store alone, so an object nobody recorded does no harm.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore
from obstore.store import from_url as store_from_url

from bitpress.errors import StoreError

STREAM_BYTES = 1024 * 1024

# What goes into a bucket in one request. S3 takes 10,000 parts for an object (docs.aws.amazon.com/AmazonS3/latest/
# userguide/qfacts.html), which are then 625 GiB; a part that fails is all that is sent again.
PART_BYTES = 64 * 2**20

# An upload older than this has no writer any more.
_STALE_SECONDS = 24 * 3600


class Object(NamedTuple):
    """An object as it is listed."""

    key: str
    bytes: int
    written_at: datetime


def job_prefix(tenant: str, job_id: str) -> str:
    """What the keys of all files of a job begin with."""
    return f"t/{tenant}/jobs/{job_id}/"


def job_key(tenant: str, job_id: str, fence: int, name: str) -> str:
    """Key of a file that one attempt of a job writes. Attempts never share a key, so none can disturb another."""
    return f"{job_prefix(tenant, job_id)}a{fence}/{name}"


class Place(NamedTuple):
    """What a key of `job_key` was made of."""

    tenant: str
    job_id: str
    fence: int
    name: str


def place_of(key: str) -> Place | None:
    """None for a key that belongs to no job."""
    match = re.fullmatch(r"t/([a-z0-9_-]+)/jobs/(job_[0-9A-Z]{26})/a([0-9]+)/(.+)", key)
    return Place(match[1], match[2], int(match[3]), match[4]) if match else None


def address_of(store_url: str, prefix: str) -> str:
    """Where others than this store read what lies below a prefix: a directory, or `s3://bucket/prefix`."""
    root = unquote(store_url.removeprefix("file://")) if store_url.startswith("file://") else store_url
    return f"{root.rstrip('/')}/{prefix.rstrip('/')}"


class ArtifactStore:
    """Objects by key under one root. Every method raises StoreError for what cannot be read or written."""

    def __init__(self, store: Any, root: Path | None) -> None:
        self._store = store
        self._root = root
        self.bytes_read = self.bytes_written = 0  # by whole objects

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Open `file:///path` (made when it is absent) or `s3://bucket/prefix` (credentials from the environment)."""
        if url.startswith("file://"):
            return cls._local(Path(unquote(url.removeprefix("file://"))))
        with _reporting("cannot open", url):
            return cls(store_from_url(url), None)

    @classmethod
    def _local(cls, path: Path) -> Self:
        if not path.is_absolute():
            raise StoreError(f"expected file:///absolute/path, found {path}")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error}") from error
        # Links below the root would be followed, out of it as well; resolved once, the root itself is none.
        root = path.resolve()
        return cls(LocalStore(root), root)

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all. Raises StoreError also when the key is taken.

        What a bucket takes in parts is aborted when one of them fails: nothing stays behind.
        """
        with _reporting("cannot write", key):
            if self._root is not None or len(data) <= PART_BYTES:
                obstore.put(self._store, key, data, mode="create")
            elif self._exists(key):
                # Uploads in parts know no such mode. That no other writes to a key is the fence's doing.
                raise FileExistsError("it exists already")
            else:
                obstore.put(self._store, key, data, chunk_size=PART_BYTES)
        self.bytes_written += len(data)

    def get_bytes(self, key: str) -> bytes:
        with _reporting("cannot read", key):
            data = bytes(obstore.get(self._store, key).bytes())
        self.bytes_read += len(data)
        return data

    def path(self, key: str) -> Path | None:
        """The file that an object is in a directory; None in a bucket."""
        return None if self._root is None else self._root / key

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` to `end`, the latter excluded, in chunks of about 1 MiB."""
        if start == end:
            return
        with _reporting("cannot read", key):
            result = await obstore.get_async(self._store, key, options={"range": (start, end)})
            async for chunk in result.stream(min_chunk_size=STREAM_BYTES):
                yield bytes(chunk)

    def objects(self, prefix: str) -> Iterator[Object]:
        """Every object whose key begins with a prefix that ends with a slash."""
        with _reporting("cannot list", prefix):
            for found in obstore.list(self._store, prefix):
                yield from (Object(each["path"], each["size"], each["last_modified"]) for each in found)

    def sha256(self, key: str) -> str:
        """Of an object's bytes, read in chunks."""
        digest = hashlib.sha256()
        with _reporting("cannot read", key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=STREAM_BYTES):
                digest.update(bytes(chunk))
        return digest.hexdigest()

    def presign(self, key: str, seconds: int) -> str | None:
        """A URL that anyone may read the object from for so long; None for a directory, which has none."""
        if self._root is not None:
            return None
        with _reporting("cannot sign", key):
            return str(obstore.sign(self._store, "GET", key, timedelta(seconds=seconds)))

    def remove(self, prefix: str) -> None:
        """Remove every object whose key begins with a prefix that ends with a slash."""
        with _reporting("cannot remove", prefix):
            for objects in obstore.list(self._store, prefix):
                obstore.delete(self._store, [found["path"] for found in objects])
        if self._root is not None:
            shutil.rmtree(self._root / prefix, ignore_errors=True)  # what is left are directories

    def ping(self) -> None:
        """Raises StoreError when the store does not answer or its directory is gone."""
        with _reporting("cannot reach", "the artifact store"):
            if self._root is None:
                self._exists("ping")
            elif not os.access(self._root, os.W_OK | os.X_OK):
                raise NotADirectoryError(f"{self._root} is not a directory that this process may write to")

    def sweep(self) -> None:
        """Remove what uploads into a directory left behind when their process was killed."""
        if self._root is None:
            return
        # While it is written, `name` is `name#1` (or another number), which no key can be.
        for path in self._root.rglob("*#*"):
            with suppress(FileNotFoundError):  # its upload has just ended
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    def _exists(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True


@contextmanager
def _reporting(what: str, key: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        # Behind its first line the library prints its inner error values.
        raise StoreError(f"{what} {key}: {str(error).splitlines()[0]}") from error
