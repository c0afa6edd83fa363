"""What is known of a job's linears while it runs: read from the evidence that lies beside every published block."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from bitpress.artifacts import BlockReport
from bitpress.plots import Mark, columns
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.jobstore import BlockRecord
from bitpress_service.web.evidence import ERROR, OUTLIERS, Measure, by_place

KEPT = 4096  # blocks of evidence; a page asks for all of its job's again and again


@dataclass(frozen=True)
class LinearPlot:
    """A figure of every linear, block after block. `svg` is markup of our own making."""

    title: str
    note: str
    svg: str


class BlockReports:
    """Evidence of published blocks, which never changes: each is read from the artifact store once."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._kept: OrderedDict[str, BlockReport] = OrderedDict()

    async def read(self, records: Iterable[BlockRecord]) -> list[BlockReport]:
        """In the order of the blocks. Raises StoreError."""
        ordered = sorted(records, key=lambda record: record.index)
        return list(await asyncio.gather(*(self._read(record) for record in ordered)))

    async def _read(self, record: BlockRecord) -> BlockReport:
        name = record.sidecar_sha256
        if name not in self._kept:
            evidence = json.loads(await run_in_threadpool(self._artifacts.get_bytes, record.sidecar_key))
            self._kept[name] = BlockReport.model_validate(evidence["report"])
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[name]


def linear_plots(blocks: Sequence[BlockReport]) -> tuple[LinearPlot, ...]:
    """Relative error of every linear, and, where there are any, the share of outliers; experts of a place are one."""
    if not blocks:
        return ()
    some_kept = any(linear.outlier_fraction for block in blocks for linear in block.linears)
    return tuple(_plot(blocks, measure) for measure in ((ERROR, OUTLIERS) if some_kept else (ERROR,)))


def _plot(blocks: Sequence[BlockReport], measure: Measure) -> LinearPlot:
    write, title = measure.write, f"{measure.title} of each linear"
    marks = [
        Mark(str(block.index), value, f"block {block.index}, {place}: {write(value)}")
        for block in blocks
        for place, value in by_place(block, measure).items()
    ]
    what = (
        f"{title}, blocks {blocks[0].index} to {blocks[-1].index}, at most {write(max(mark.value for mark in marks))}"
    )
    return LinearPlot(
        title,
        f"{measure.note}; of experts, the {'worst' if measure.combine is max else 'mean'}",
        columns(marks, "block", what),
    )
