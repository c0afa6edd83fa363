"""One job, in a straight line: plan, tokens, compress block by block, evaluate, report, manifest last."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from bitpress.artifacts import ArtifactFile, PerplexityReport, Report
from bitpress.errors import OutOfMemory
from bitpress.jobs import JobSpec, ModelSource
from bitpress.methods import LoRAPreprocessing
from bitpress_service.artifactstore import ArtifactStore
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.exports import check_shapes, create_target
from bitpress_workers.methods import create
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.calibration import tokens_sha256
from bitpress_workers.pipeline.compress import BlockLoop, chain_root
from bitpress_workers.pipeline.conclusion import OUTER, conclude
from bitpress_workers.pipeline.evaluate import Perplexities
from bitpress_workers.pipeline.export import Exporter
from bitpress_workers.pipeline.fleet import Fleet, FleetMaker
from bitpress_workers.pipeline.inputs import read_texts
from bitpress_workers.pipeline.memory import peak_resident_bytes
from bitpress_workers.pipeline.placement import micro_batches, share
from bitpress_workers.pipeline.plan import Devices, Plan, make_plan
from bitpress_workers.pipeline.preprocessing import Unrecorded, check_adapters, restore
from bitpress_workers.pipeline.progress import FIRST_PASS_SHARE, RESTORING_SHARE, ProgressMeter
from bitpress_workers.pipeline.publish import Publisher, Recorder, Sidecar
from bitpress_workers.pipeline.replacement import LastingFleet
from bitpress_workers.pipeline.report import make_report
from bitpress_workers.pipeline.shard import Published, Shard, ShardConfig
from bitpress_workers.pipeline.sizes import model_sizes
from bitpress_workers.pipeline.solving import BlockTrainer, Solver, TapSolver


@dataclass(frozen=True)
class Site:
    """Where a job runs and where its results go; none of it changes a bit of them.

    scratch: a directory of this attempt alone, made when it is needed and removed in the end.
    """

    devices: Devices
    make_fleet: FleetMaker
    store_url: str
    key_of: Callable[[str], str]
    recorder: Recorder
    scratch: Path


@dataclass
class Pipeline:
    spec: JobSpec
    site: Site
    phases: dict[str, float] = field(default_factory=dict)
    waiting_for: str = ""

    def run(self) -> Report:
        """Run the job to its manifest. Raises BitpressError; what was published before stays."""
        with self._phase("preparing"):
            self._prepare()
        try:
            if self.preprocessing:
                with self._phase("restoring"):
                    self.fleet.run(self._restore)
            with self._phase("calibrating"):
                records = self.fleet.run(lambda fleet: self._compress(fleet, self.publisher, self.meter))
            with self._phase("evaluating"):
                perplexity = self.fleet.run(lambda fleet: self._evaluate(fleet, [record for record, _ in records]))
            self.meter.publishing()
            exported = self._export(records)
            peaks = [(peak_resident_bytes(), 0), *self.fleet.run(lambda fleet: fleet.get(fleet.all(Shard.peak_bytes)))]
            sidecars = [sidecar for _, sidecar in records]
            report = make_report(
                self.spec,
                sidecars,
                perplexity,
                self.bytes_before,
                self.phases,
                peaks,
                self.site.devices.kind,
                self.fleet.losses,
            )
            outer: Published = self.fleet.run(
                lambda fleet: fleet.get([fleet.on(0, Shard.publish_outer, self.publisher.key_of(OUTER))])[0]
            )
            companions = self.checkpoint.companion_files()
            conclude(self.publisher, self.spec, records, outer, exported, companions, report)
        finally:
            self.fleet.close()
            shutil.rmtree(self.site.scratch, ignore_errors=True)
        return report

    def _prepare(self) -> None:
        spec, site = self.spec, self.site
        checkpoint = self.checkpoint = Checkpoint.open(spec.model.uri, spec.model.revision)
        outline = self.outline = Outline(checkpoint)
        self.method = create(spec.method)
        self.preprocessing: LoRAPreprocessing | None = getattr(spec.method, "preprocessing", None)
        self.meter = ProgressMeter(site.recorder, outline.num_blocks, bool(spec.evaluation.datasets))
        self.meter.preparing()
        self.texts = read_texts(spec, checkpoint)
        sizes = self.sizes = model_sizes(outline, checkpoint)
        if self.preprocessing:
            check_adapters([name for block in sizes.blocks for name in block.linears])
        self.targets = [create_target(name, spec.method) for name in spec.exports]
        check_shapes(self.targets, outline, checkpoint)
        self.plan = self._make_plan(spec)
        self.bytes_before = sizes.linear_bytes
        self.publisher = Publisher(ArtifactStore.from_url(site.store_url), site.key_of, site.recorder)
        self.original = self.opened = ModelSource(uri=checkpoint.uri, revision=checkpoint.revision)
        self.fleet = LastingFleet(self._make_fleet, self.plan.num_shards, site.recorder)
        self.fleet.run(lambda _: None)  # starting it is no part of calibrating

    def _make_fleet(self, size: int, fewest: int) -> Fleet:
        config = ShardConfig(
            model=self.opened,
            method=self.spec.method,
            device=self.site.devices.kind,
            store_url=self.site.store_url,
            slices=self.plan.slices,
            row_tile=self.plan.row_tile,
        )
        fleet = self.site.make_fleet(config, size, fewest, self._wait)
        if self._plan_for(fleet).offloaded:
            fleet.get(fleet.all(Shard.offload))
        return fleet

    def _plan_for(self, fleet: Fleet) -> Plan:
        """The plan, or that of a fleet that has lost devices. Raises OutOfMemory when the rest cannot hold the job."""
        if fleet.size == self.plan.num_shards:
            return self.plan
        try:
            return self._make_plan(self.spec.model_copy(update={"devices": fleet.size}))
        except OutOfMemory as error:
            fleet.close()
            raise OutOfMemory(f"on the {fleet.size} devices that are left {error.message}") from error

    def _make_plan(self, spec: JobSpec) -> Plan:
        num_windows = sum(len(tokens_KS) for tokens_KS in self.texts.windows.values())
        return make_plan(spec, self.method, self.sizes, num_windows, self.site.devices)

    def _wait(self, why: str) -> None:
        """Say once why the job has to wait, and notice that it was cancelled."""
        if why != self.waiting_for:
            self.site.recorder.log(why)
        self.waiting_for = why
        self.meter.preparing()

    def _restore(self, fleet: Fleet) -> None:
        """Compress the model, train an adapter on the result, and make the merged model what the shards read."""
        assert self.preprocessing is not None
        scratch, meter = self.site.scratch, self.meter
        shutil.rmtree(scratch, ignore_errors=True)  # of an attempt that was killed
        first, middle = FIRST_PASS_SHARE, RESTORING_SHARE
        meters = [replace(meter, compressing="restoring", span=span) for span in ((0.0, first), (first, middle))]
        store_url = (scratch / "first").as_uri()
        self._open(fleet, self.original, store_url)
        store = Publisher(ArtifactStore.from_url(store_url), str, Unrecorded(self.site.recorder))
        records = [record for record, _ in self._compress(fleet, store, meters[0])]
        restore(fleet, self.preprocessing, records, self.texts.documents, scratch / "restored", meters[1])
        self.opened = ModelSource(uri=str(scratch / "restored"))
        self._open(fleet, self.opened, self.site.store_url)
        self.meter = replace(meter, span=(middle, 1.0))

    def _open(self, fleet: Fleet, model: ModelSource, store_url: str) -> None:
        """Let all shards read this checkpoint and write into this store."""
        for shard in range(fleet.size):  # one after the other: a model is built by patching torch
            fleet.get([fleet.on(shard, Shard.open, model, store_url)])

    def _compress(self, fleet: Fleet, publisher: Publisher, meter: ProgressMeter) -> list[tuple[BlockRecord, Sidecar]]:
        plan, solver = self.plan, self._solver(fleet, meter)
        for stream in solver.streams:
            fleet.get(fleet.all(Shard.start, stream, self.texts.tokens, _calibration_groups(plan, fleet.size)))
        records = BlockLoop(fleet, plan, solver, publisher, meter, self._chain_root(fleet)).run()
        for stream in solver.streams:
            fleet.get(fleet.all(Shard.stop, stream))
        return records

    def _evaluate(self, fleet: Fleet, records: Sequence[BlockRecord]) -> dict[str, PerplexityReport]:
        if self.preprocessing:
            self.opened = self.original  # quality is measured against the original
            self._open(fleet, self.opened, self.site.store_url)
        return Perplexities(fleet, self.meter, records).run(self.texts.windows)

    def _solver(self, fleet: Fleet, meter: ProgressMeter) -> Solver:
        """How the method compresses a block in hand."""
        if isinstance(self.method, BlockMethod):
            return BlockTrainer(fleet, self.plan, self.method, meter)
        damping = getattr(self.spec.method, "damping", None)
        return TapSolver(fleet, self.plan, self.method, damping, meter)

    def _chain_root(self, fleet: Fleet) -> str:
        libraries = ("bitpress", "torch", "transformers")
        return chain_root(
            tokens=tokens_sha256(self.texts.tokens),
            method=self.spec.method.model_dump(mode="json"),
            config=json.loads((self.checkpoint.path / "config.json").read_text()),
            outer_weights=fleet.get([fleet.on(0, Shard.outer_fingerprint)])[0],
            row_tile=self.plan.row_tile,
            device=self.site.devices.kind,
            versions={name: version(name) for name in libraries},
        )

    def _export(self, records: Sequence[tuple[BlockRecord, Sidecar]]) -> dict[ArtifactFile, str]:
        if not self.targets:
            return {}
        exporter = Exporter(self.targets, self.checkpoint, self.outline, self.publisher, self.meter)
        with self._phase("exporting"):
            return exporter.run([record for record, _ in records])

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - started


def _calibration_groups(plan: Plan, num_shards: int) -> list[list[range]]:
    """Micro-batches of each shard: whole slices, each cut for itself."""
    return [
        [
            batch
            for piece in share(len(plan.slices), num_shards, shard)
            for batch in micro_batches(plan.slices[piece], plan.micro_batch)
        ]
        for shard in range(num_shards)
    ]
