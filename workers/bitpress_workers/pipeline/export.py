"""Exports: published blocks read once more, one at a time, and written as other systems read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitpress.artifacts import ArtifactFile
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.exports import Piece, Target, export_files
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.block_file import read_linears
from bitpress_workers.pipeline.progress import ProgressMeter
from bitpress_workers.pipeline.publish import Publisher


@dataclass(frozen=True)
class Exporter:
    """Writes the targets of one job."""

    targets: Sequence[Target]
    checkpoint: Checkpoint
    outline: Outline
    publisher: Publisher
    meter: ProgressMeter

    def run(self, records: Sequence[BlockRecord]) -> dict[ArtifactFile, str]:
        """Publish every file of every target; returns their object keys. Raises ArtifactError for a changed block."""
        files = {}
        for name, data in export_files(self.targets, self.checkpoint, self._pieces(records), len(records) + 1):
            self.meter.publishing()
            files[self.publisher.file(name, data)] = self.publisher.key_of(name)
        return files

    def _pieces(self, records: Sequence[BlockRecord]) -> Iterator[Piece]:
        yield Piece(self.checkpoint.read(self.outline.outer_tensor_names().values()), {}, ())
        for record in records:
            yield self._block(record)

    def _block(self, record: BlockRecord) -> Piece:
        linears = read_linears(self.publisher.store.get_bytes(record.key), record.sha256, record.key)
        names = self.outline.block_tensor_names(record.index)
        weights = {names.pop(f"{module}.weight"): linear for module, linear in linears.items()}
        return Piece(self.checkpoint.read(names.values()), weights, tuple(linears))
