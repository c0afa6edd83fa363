"""With what a job was run (code, libraries, devices), and what that took."""

import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from bitpress.artifacts import ProcessCost, Provenance
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.memory import peak_resident_bytes

PACKAGES = ("bitpress", "bitpress_service", "bitpress_workers")
SOURCES = {".py", ".lua"}
LIBRARIES = ("bitpress", "torch", "transformers", "safetensors", "tokenizers", "ray", "datasets", "lm-eval")


def provenance(
    weights_sha256: str, tokens_sha256: str, seeds: Mapping[str, int], devices: Sequence[str], kind: str
) -> Provenance:
    """From the hashes of what a job read, its seeds, its devices' names and their kind."""
    return Provenance(
        version=importlib.metadata.version("bitpress"),
        code_sha256=code_sha256(),
        weights_sha256=weights_sha256,
        tokens_sha256=tokens_sha256,
        seeds=dict(seeds),
        devices=tuple(devices),
        versions=versions(kind),
    )


def cost(part: str, device: torch.device, opened: Sequence[tuple[Checkpoint, ArtifactStore]]) -> ProcessCost:
    """What a part of a job has taken so far in this process. opened: all that it reads from and writes to."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return ProcessCost(
        part=part,
        device=device_name(device),
        peak_bytes=peak_resident_bytes(),
        peak_device_bytes=on_device,
        bytes_read=sum(checkpoint.bytes_read + store.bytes_read for checkpoint, store in opened),
        bytes_written=sum(store.bytes_written for _, store in opened),
    )


def versions(device: str) -> dict[str, str]:
    """Libraries, interpreter and machine: bits are promised per machine type and versions, not across."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "device": device}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def code_sha256() -> str:
    """Hash of all sources of Bitpress as they are installed, with their names."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
            if path.suffix in SOURCES:
                name = f"{package}/{path.relative_to(root).as_posix()}"
                digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """The name of an accelerator, or of this host's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
