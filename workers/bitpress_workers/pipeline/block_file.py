"""A published block as bytes: one safetensors file, the headers of its compressed linears in its metadata."""

import hashlib
import json
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from bitpress.errors import ArtifactError
from bitpress.formats import CompressedLinear, Header, from_tensors


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


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors, their shapes and types included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
