"""Exports: published blocks read once more, one at a time, and written as other systems read them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import safetensors.torch

from bitpress.artifacts import ArtifactFile
from bitpress.errors import ArtifactError
from bitpress.formats import from_tensors
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.exports import Piece, Target, export_files
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Publisher, Sidecar


@dataclass(frozen=True)
class Exporter:
    """Writes the targets of one job."""

    targets: Sequence[Target]
    checkpoint: Checkpoint
    outline: Outline
    publisher: Publisher
    meter: ProgressMeter

    def run(self, records: Sequence[tuple[BlockRecord, Sidecar]]) -> dict[ArtifactFile, str]:
        """Publish every file of every target; returns their object keys. Raises ArtifactError for a changed block."""
        files = {}
        for name, data in export_files(self.targets, self.checkpoint, self._pieces(records), len(records) + 1):
            self.meter.publishing()
            files[self.publisher.file(name, data)] = self.publisher.key_of(name)
        return files

    def _pieces(self, records: Sequence[tuple[BlockRecord, Sidecar]]) -> Iterator[Piece]:
        yield Piece(self.checkpoint.read(self.outline.outer_tensor_names().values()), {}, ())
        for record, sidecar in records:
            yield self._block(record, sidecar)

    def _block(self, record: BlockRecord, sidecar: Sidecar) -> Piece:
        data = self.publisher.store.get_bytes(record.key)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise ArtifactError(f"{record.key}: its content has changed since it was published")
        stored = safetensors.torch.load(data)
        names = self.outline.block_tensor_names(record.index)
        linears = {}
        for module, header in sidecar.headers.items():
            parts = {name for name in stored if name.startswith(f"{module}.") and name != f"{module}.bias"}
            tensors = {name.removeprefix(f"{module}."): stored.pop(name) for name in parts}
            linears[names[f"{module}.weight"]] = from_tensors(header, tensors)
        return Piece({names[name]: tensor for name, tensor in stored.items()}, linears, tuple(sidecar.headers))
