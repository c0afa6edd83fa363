"""Jobs, in a straight line: plan, tokens, compress block by block, evaluate, report, manifest last."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from bitpress.artifacts import ArtifactFile, Report
from bitpress.errors import BitpressError, OutOfMemory, StoreError
from bitpress.jobs import JobSpec, ModelSource
from bitpress.methods import LoRAPreprocessing
from bitpress_service.artifactstore import ArtifactStore, address_of
from bitpress_workers.exports import check_shapes, create_target
from bitpress_workers.methods import create
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.accounts import cost, provenance
from bitpress_workers.pipeline.block_file import Published, chain_link
from bitpress_workers.pipeline.calibration import tokens_sha256
from bitpress_workers.pipeline.compress import BlockLoop, Track, Way, calibration_groups, chain_root
from bitpress_workers.pipeline.conclusion import Files, publish_model, publish_report
from bitpress_workers.pipeline.evaluate import Evaluator, surviving
from bitpress_workers.pipeline.export import Exporter
from bitpress_workers.pipeline.fleet import Fleet, FleetMaker
from bitpress_workers.pipeline.independent import IndependentLoop
from bitpress_workers.pipeline.inputs import read_texts
from bitpress_workers.pipeline.load_check import LoadChecker
from bitpress_workers.pipeline.member import FleetSpoiled, Member, Members, MembersEnded
from bitpress_workers.pipeline.model_card import model_card
from bitpress_workers.pipeline.plan import Devices, Plan, make_plan
from bitpress_workers.pipeline.preprocessing import Unrecorded, check_adapters, restore
from bitpress_workers.pipeline.progress import FIRST_PASS_SHARE, RESTORING_SHARE, ProgressMeter
from bitpress_workers.pipeline.publish import OUTER, Publisher, Recorder
from bitpress_workers.pipeline.quality import RESAMPLING_SEED
from bitpress_workers.pipeline.replacement import LastingFleet
from bitpress_workers.pipeline.report import bits_per_weight, make_report
from bitpress_workers.pipeline.shard import Shard, ShardConfig, ShardMethod
from bitpress_workers.pipeline.sizes import model_sizes
from bitpress_workers.pipeline.solving import BlockTrainer, Solver, TapSolver

RESTORING = "restoring/"  # below this lies what PTQ1.61's first pass makes, until the job ends; no part of an artifact


@dataclass(frozen=True)
class Site:
    """Where jobs run; none of it changes a bit of their results.

    store_url: where results go. scratch: a directory of this attempt alone on this host, made when it is needed and
    removed in the end.
    """

    devices: Devices
    make_fleet: FleetMaker
    store_url: str
    scratch: Path


def run_job(spec: JobSpec, key_of: Callable[[str], str], recorder: Recorder, site: Site) -> Report:
    """Run one job to its manifest. Raises BitpressError; what was published before stays."""
    member = Member(0, spec, key_of, recorder)
    Pipeline(Members([member]), site).run()
    return member.result()


@dataclass
class Pipeline:
    """One job, or the members of a sweep, which share the checkpoint, the texts and every block that is read."""

    members: Members
    site: Site
    phases: dict[str, float] = field(default_factory=dict)
    waiting_for: str = ""

    def run(self) -> None:
        """Run all jobs, each to its manifest, as its `report`, or to its `error`; what was published before stays."""
        try:
            with self._phase("preparing"):
                self._prepare()
            self._run()
        except MembersEnded:
            return
        except BitpressError as error:
            for member in self.members:
                member.end(error)

    def _run(self) -> None:
        try:
            if self.preprocessing:
                with self._phase("restoring"):
                    self._on_fleet(self._restore)
            with self._phase("calibrating"):
                self._on_fleet(self._compress)
            with self._phase("evaluating"):
                if failed := surviving(lambda: self._on_fleet(self._evaluate)):
                    self.fleet.close()  # of no use after an error; the rest of the job gets a new one
                    for member in self.members.unevaluated():
                        member.quality = failed
            for member in self.members:
                try:
                    with self.members.part(member, on_shards=True):
                        self._conclude(member)
                except FleetSpoiled:
                    self.fleet.close()
        finally:
            self.fleet.close()
            shutil.rmtree(self.site.scratch, ignore_errors=True)
            if self.preprocessing:
                with suppress(StoreError):  # what cannot be removed now goes with the job
                    self.store.remove(self.members.first.key_of(RESTORING))

    def _on_fleet(self, work: Callable[[Fleet], None]) -> None:
        """Do work for all members that are left, again on a new fleet when one of them has spoiled it."""
        while True:
            try:
                return self.fleet.run(work)
            except FleetSpoiled:
                self.fleet.close()

    def _prepare(self) -> None:
        spec, site = self.members.first.spec, self.site
        checkpoint = self.checkpoint = Checkpoint.open(spec.model.uri, spec.model.revision)
        outline = self.outline = Outline(checkpoint)
        self.store = ArtifactStore.from_url(site.store_url)
        evaluates = bool(spec.evaluation.datasets or spec.evaluation.tasks)
        for member in self.members:
            with self.members.part(member, on_shards=False):
                member.meter = ProgressMeter(member.recorder, outline.num_blocks, evaluates)
                member.meter.preparing()
                member.publisher = Publisher(self.store, member.key_of, member.recorder)
        self.texts = read_texts(spec, checkpoint)
        sizes = self.sizes = model_sizes(outline, checkpoint)
        self.preprocessing: LoRAPreprocessing | None = getattr(spec.method, "preprocessing", None)
        if self.preprocessing:
            check_adapters([name for block in sizes.blocks for name in block.linears])
        for member in self.members:
            with self.members.part(member, on_shards=False):
                member.method = create(member.spec.method)
                member.targets = [create_target(name, member.spec.method) for name in spec.exports]
                check_shapes(member.targets, outline, checkpoint)
                member.plan = self._make_plan(member, member.spec)
        self.bytes_before = sizes.linear_bytes
        self.original = self.opened = ModelSource(uri=checkpoint.uri, revision=checkpoint.revision)
        on_cpu = site.devices.kind == "cpu"
        (num_shards,) = {member.plan.num_shards for member in self.members}
        self.fleet = LastingFleet(self._make_fleet, num_shards, self.members, shared_memory=on_cpu)
        self.fleet.run(lambda _: None)  # starting it is no part of calibrating

    def _make_fleet(self, size: int, fewest: int, thrifty: bool) -> Fleet:
        config = ShardConfig(
            model=self.opened,
            methods={member.number: ShardMethod(member.spec.method, member.plan.row_tile) for member in self.members},
            device=self.site.devices.kind,
            store_url=self.site.store_url,
            slices=next(iter(self.members)).plan.slices,
            thrifty=thrifty,
        )
        fleet = self.site.make_fleet(config, size, fewest, self._wait)
        if self.waiting_for:
            self.waiting_for = ""
            self.members.waiting("")
        if any(self._plan_for(fleet, member).offloaded for member in self.members):
            fleet.get(fleet.all(Shard.offload))
        return fleet

    def _plan_for(self, fleet: Fleet, member: Member) -> Plan:
        """The plan, or that of a fleet that has lost devices. Raises OutOfMemory when the rest cannot hold the job."""
        if fleet.size == member.plan.num_shards:
            return member.plan
        try:
            return self._make_plan(member, member.spec.model_copy(update={"devices": fleet.size}))
        except OutOfMemory as error:
            fleet.close()
            raise OutOfMemory(f"on the {fleet.size} devices that are left {error.message}") from error

    def _make_plan(self, member: Member, spec: JobSpec) -> Plan:
        num_windows = self.texts.num_windows
        num_members = len(self.members.all)
        return make_plan(spec, member.method, self.sizes, num_windows, self.site.devices, num_members)

    def _wait(self, why: str) -> None:
        """Say once why the jobs have to wait, show it as long as they do, and notice those that were cancelled."""
        if why != self.waiting_for:
            self.members.log(why)
            self.members.waiting(why)
        self.waiting_for = why
        for member in self.members:
            with self.members.part(member, on_shards=False):
                member.meter.preparing()

    def _restore(self, fleet: Fleet) -> None:
        """Compress the model, train an adapter on the result, and make the merged model what the shards read."""
        assert self.preprocessing is not None
        (member,) = self.members
        meter, store = member.meter, self.store
        store.remove(member.key_of(RESTORING))  # of a run that was killed
        # Keys of its own for every try: a lost shard may still be writing.
        prefix = member.key_of(f"{RESTORING}{len(self.fleet.losses)}/")
        first, middle = FIRST_PASS_SHARE, RESTORING_SHARE
        meters = [replace(meter, compressing="restoring", span=span) for span in ((0.0, first), (first, middle))]
        self._open(fleet, self.original)
        publisher = Publisher(store, lambda name: f"{prefix}first/{name}", Unrecorded(member.recorder))
        outer = self._outer_fingerprint(fleet)
        (track,) = self._exactly(fleet, [replace(self._track(member, outer), publisher=publisher, meter=meters[0])])
        self._note_weights(track, outer)
        records = [record for record, _ in track.in_order()]
        restore(fleet, self.preprocessing, records, self.texts.documents, f"{prefix}model/", meters[1])
        self.opened = ModelSource(uri=address_of(self.site.store_url, f"{prefix}model"))
        self._open(fleet, self.opened)
        member.meter = replace(meter, span=(middle, 1.0))

    def _open(self, fleet: Fleet, model: ModelSource) -> None:
        """Let all shards read this checkpoint."""
        for shard in range(fleet.size):  # one after the other: a model is built by patching torch
            fleet.get([fleet.on(shard, Shard.open, model)])

    def _compress(self, fleet: Fleet) -> None:
        outer_weights = self._outer_fingerprint(fleet)
        tracks = []
        for member in self.members:
            with self.members.part(member, on_shards=False):
                tracks.append(self._track(member, outer_weights))
        independent = self.members.first.spec.strategy == "independent"
        for track in self._independently(fleet, tracks) if independent else self._exactly(fleet, tracks):
            track.member.records = track.in_order()
            self._note_weights(track, outer_weights)

    def _track(self, member: Member, outer_weights: str) -> Track:
        return Track(member, member.publisher, member.meter, self._chain_root(member, outer_weights))

    def _note_weights(self, track: Track, outer_weights: str) -> None:
        """Keep the hash of the weights that a member has met first, its checkpoint's own."""
        track.member.weights_sha256 = track.member.weights_sha256 or chain_link(outer_weights, track.weights)

    def _outer_fingerprint(self, fleet: Fleet) -> str:
        return fleet.get([fleet.on(0, Shard.outer_fingerprint)])[0]

    def _exactly(self, fleet: Fleet, tracks: Sequence[Track]) -> Sequence[Track]:
        ways = [Way(fleet, track, self._solver(fleet, track)) for track in tracks]
        for way in ways:
            way.start(self.texts.tokens)
        BlockLoop(fleet, self.members, ways).run()
        for way in ways:
            way.stop()
        return tracks

    def _independently(self, fleet: Fleet, tracks: Sequence[Track]) -> Sequence[Track]:
        (batches,) = calibration_groups(tracks[0].member.plan, 1)
        IndependentLoop(fleet, self.members, tracks, self.texts.tokens, batches).run()
        return tracks

    def _evaluate(self, fleet: Fleet) -> None:
        if self.preprocessing:
            self.opened = self.original  # quality is measured against the original
            self._open(fleet, self.opened)
        Evaluator(fleet, self.members, self.texts.prompt, self.texts.zero_shot).run(self.texts.windows)

    def _solver(self, fleet: Fleet, track: Track) -> Solver:
        """How a member's method compresses a block in hand."""
        member = track.member
        if isinstance(member.method, BlockMethod):
            return BlockTrainer(fleet, member.plan, member.method, track.meter)
        return TapSolver(fleet, member.plan, member.method, member.damping, track.meter)

    def _chain_root(self, member: Member, outer_weights: str) -> str:
        libraries = ("bitpress", "torch", "transformers")
        return chain_root(
            tokens=tokens_sha256(self.texts.tokens),
            method=member.spec.method.model_dump(mode="json"),
            strategy=member.spec.strategy,
            config=json.loads((self.checkpoint.path / "config.json").read_text()),
            outer_weights=outer_weights,
            row_tile=member.plan.row_tile,
            device=self.site.devices.kind,
            versions={name: version(name) for name in libraries},
        )

    def _conclude(self, member: Member) -> None:
        """Export, publish what lies beside the blocks, open the result, report, and write the manifest."""
        assert member.quality is not None
        member.meter.publishing()
        exported = self._export(member)
        model = self._publish_model(member)
        with self._phase("checking"):
            load_check = self._load_checker(member).run(model)
        shards = self.fleet.run(lambda fleet: fleet.get(fleet.all(Shard.cost)))
        made_with = provenance(
            member.weights_sha256,
            tokens_sha256(self.texts.tokens),
            {"calibration": member.spec.calibration.seed, "intervals": RESAMPLING_SEED},
            [shard.device for shard in shards],
            self.site.devices.kind,
        )
        sidecars = [sidecar for _, sidecar in member.records]
        report = make_report(
            member.spec,
            sidecars,
            member.quality,
            load_check,
            self.bytes_before,
            self.phases,
            [cost("job", torch.device("cpu"), [(self.checkpoint, member.publisher.store)]), *shards],
            made_with,
            self.fleet.losses,
        )
        files = exported | model | publish_report(member.publisher, report)
        member.publisher.finish(member.spec, member.records[-1][1].chain, made_with, files)
        member.end(report)

    def _publish_model(self, member: Member) -> Files:
        outer: Published = self.fleet.run(
            lambda fleet: fleet.get([fleet.on(0, Shard.publish_outer, member.key_of(OUTER))])[0]
        )
        assert member.quality is not None
        bits = bits_per_weight([sidecar.report for _, sidecar in member.records])
        card = model_card(member.spec, bits, member.quality)
        return publish_model(member.publisher, member.records, outer, self.checkpoint.companion_files(), card)

    def _load_checker(self, member: Member) -> LoadChecker:
        on_cpu = self.site.devices.kind == "cpu"
        return LoadChecker(
            tokens=self.texts.prompt[0].tolist(),
            logits=member.logits,
            store_url=self.site.store_url,
            scratch=self.site.scratch,
            memory_bytes=self.site.devices.memory_bytes if on_cpu else None,
            threads=1 if on_cpu else 0,
            watch=member.meter.publishing,
        )

    def _export(self, member: Member) -> dict[ArtifactFile, str]:
        if not member.targets:
            return {}
        exporter = Exporter(member.targets, self.checkpoint, self.outline, member.publisher, member.meter)
        with self._phase("exporting"):
            return exporter.run([record for record, _ in member.records])

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - started
