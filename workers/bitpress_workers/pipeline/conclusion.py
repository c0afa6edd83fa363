"""The end of a job: everything beside the blocks and the exports; the report, and the manifest last of all."""

import json
from collections.abc import Sequence
from pathlib import Path

from bitpress.artifacts import REPORT, ArtifactFile, Report
from bitpress.report_page import to_html
from bitpress_service.jobstore import BlockRecord
from bitpress_workers.pipeline.block_file import Published
from bitpress_workers.pipeline.publish import OUTER, Publisher, Sidecar, block_name, sidecar_name
from bitpress_workers.pipeline.report import to_markdown

INDEX = "model.safetensors.index.bitpress.json"

Records = Sequence[tuple[BlockRecord, Sidecar]]
Files = dict[ArtifactFile, str]  # with the keys of their objects


def publish_model(
    publisher: Publisher, records: Records, outer: Published, companions: Sequence[Path], card: str
) -> Files:
    """Publish configs and the model card beside the model's weights; returns all files of the model.

    outer: the file OUTER, which lies in the store already, as do the blocks. companions: files of the checkpoint
    that go into the artifact as they are.
    """
    files: Files = {}
    for record, sidecar in records:
        files[ArtifactFile(name=record.name, bytes=record.bytes, sha256=record.sha256)] = record.key
        evidence = sidecar.model_dump_json().encode()
        name = sidecar_name(record.index)
        files[ArtifactFile(name=name, bytes=len(evidence), sha256=record.sidecar_sha256)] = record.sidecar_key
    files[ArtifactFile(name=OUTER, bytes=outer.bytes, sha256=outer.sha256)] = publisher.key_of(OUTER)
    small = {path.name: path.read_bytes() for path in companions}
    small["config.json"] = _with_quantization(small["config.json"], [sidecar for _, sidecar in records])
    small[INDEX] = _weight_index(records, outer)
    small["README.md"] = card.encode()
    return files | _published(publisher, small)


def publish_report(publisher: Publisher, report: Report) -> Files:
    """Publish the report in all its forms."""
    forms = {
        REPORT: report.model_dump_json(indent=1),
        "report.md": to_markdown(report),
        "report.html": to_html(report),
    }
    return _published(publisher, {name: text.encode() for name, text in forms.items()})


def _published(publisher: Publisher, small: dict[str, bytes]) -> Files:
    return {publisher.file(name, data): publisher.key_of(name) for name, data in small.items()}


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
