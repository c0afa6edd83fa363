"""The end of a job: everything beside the blocks and the exports, and the manifest last of all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitpress.artifacts import REPORT, ArtifactFile, Report
from bitpress.jobs import JobSpec
from bitpress.report_page import to_html
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.block_file import Published
from bitpress_workers.pipeline.publish import Publisher, Sidecar, block_name, sidecar_name
from bitpress_workers.pipeline.report import to_markdown

OUTER = "skeleton.safetensors"
INDEX = "model.safetensors.index.bitpress.json"

Records = Sequence[tuple[BlockRecord, Sidecar]]


def conclude(
    publisher: Publisher,
    spec: JobSpec,
    records: Records,
    outer: Published,
    exported: Mapping[ArtifactFile, str],
    companions: Sequence[Path],
    report: Report,
) -> None:
    """Publish reports and configs, then the manifest over all files.

    outer: the file OUTER, which lies in the store already, as do the blocks and what was exported (with their
    keys). companions: files of the checkpoint that go into the artifact as they are.
    """
    files = dict(exported)
    for record, sidecar in records:
        files[ArtifactFile(name=record.name, bytes=record.bytes, sha256=record.sha256)] = record.key
        evidence = sidecar.model_dump_json().encode()
        name = sidecar_name(record.index)
        files[ArtifactFile(name=name, bytes=len(evidence), sha256=record.sidecar_sha256)] = record.sidecar_key
    files[ArtifactFile(name=OUTER, bytes=outer.bytes, sha256=outer.sha256)] = publisher.key_of(OUTER)
    small = {path.name: path.read_bytes() for path in companions}
    small["config.json"] = _with_quantization(small["config.json"], [sidecar for _, sidecar in records])
    small[INDEX] = _weight_index(records, outer)
    small[REPORT] = report.model_dump_json(indent=1).encode()
    small["report.md"] = to_markdown(report).encode()
    small["report.html"] = to_html(report).encode()
    for name, data in small.items():
        files[publisher.file(name, data)] = publisher.key_of(name)
    publisher.finish(spec, records[-1][1].chain, files)


def _with_quantization(config: bytes, sidecars: Sequence[Sidecar]) -> bytes:
    """config.json that tells transformers how every compressed linear is stored."""
    modules = {name: header for sidecar in sidecars for name, header in sidecar.headers.items()}
    data = json.loads(config) | {"quantization_config": {"quant_method": "bitpress", "version": 1, "modules": modules}}
    return json.dumps(data, indent=1).encode()


def _weight_index(records: Records, outer: Published) -> bytes:
    """Which file holds which tensor, under a name that transformers reads only when asked for `variant="bitpress"`."""
    weight_map = dict.fromkeys(outer.tensors, OUTER)
    for record, sidecar in records:
        weight_map |= dict.fromkeys(sidecar.tensors, block_name(record.index))
    size = outer.bytes + sum(record.bytes for record, _ in records)
    return json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=1, sort_keys=True).encode()
