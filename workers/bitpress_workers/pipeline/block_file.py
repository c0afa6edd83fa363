"""A published block: one safetensors file, the headers of its compressed linears in its metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bitpress.errors import ArtifactError, StoreError
from bitpress.formats import CompressedLinear, Header, from_tensors
from bitpress_service.artifactstore import ArtifactStore


@dataclass(frozen=True)
class Published:
    """A file that a shard put into the object store."""

    sha256: str
    bytes: int
    tensors: tuple[str, ...]
    headers: dict[str, dict[str, Any]]


def put_block(
    store: ArtifactStore, key: str, tensors: Mapping[str, Tensor], headers: Mapping[str, Header]
) -> Published:
    """Write a file into the object store; headers: of compressed linears, by full name. Raises StoreError."""
    published, data = pack_block(tensors, headers)
    store_block(store, key, data)
    return published


def pack_block(tensors: Mapping[str, Tensor], headers: Mapping[str, Header]) -> tuple[Published, bytes]:
    """Return a file's content, and what there is to say of it; headers: of compressed linears, by full name."""
    data = write_block(tensors, headers)
    return Published(hashlib.sha256(data).hexdigest(), len(data), tuple(sorted(tensors)), dict(headers)), data


def store_block(store: ArtifactStore, key: str, data: bytes) -> None:
    """Write a file's content into the object store. Raises StoreError."""
    try:
        store.put_bytes(key, data)
    except StoreError:
        if not _holds(store, key, data):
            raise


def _holds(store: ArtifactStore, key: str, data: bytes) -> bool:
    """Whether a shard that was lost before it could say so has written the very same object."""
    try:
        return store.get_bytes(key) == data
    except StoreError:
        return False


def write_block(tensors: Mapping[str, Tensor], headers: Mapping[str, Header]) -> bytes:
    """Return the file. headers: of compressed linears, by full name."""
    # One metadata key: safetensors writes several in no fixed order, and equal blocks must be equal bytes.
    return safetensors.torch.save(dict(tensors), metadata={"bitpress": json.dumps(headers, sort_keys=True)})


def read_linears(data: bytes, sha256: str, key: str) -> dict[str, CompressedLinear]:
    """Return a file's compressed linears, by full name. Raises ArtifactError when the file has changed."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{key}: its content has changed since it was published")
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    headers: dict[str, Header] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["bitpress"])
    linears = {}
    for name, header in headers.items():
        stored = {
            full.removeprefix(f"{name}."): tensor for full, tensor in tensors.items() if full.startswith(f"{name}.")
        }
        stored.pop("bias", None)
        linears[name] = from_tensors(header, stored)
    return linears


def chain_link(chain: str, weights: str) -> str:
    """The hash chain's next link: over all before it and what comes now, both as hexadecimal."""
    return hashlib.sha256(f"{chain} {weights}".encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors, their shapes and types included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
