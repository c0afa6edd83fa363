"""Small real objects that tests of the service need again and again."""

from bitpress.jobs import Failure, JobSpec, parse_spec
from bitpress_service.jobstore import BlockRecord

LEASE = 60.0


def job_spec(bits: int = 3, **labels: str) -> JobSpec:
    return parse_spec(
        {
            "model": {"uri": "/models/some"},
            "method": {"kind": "spqr", "bits": bits},
            "calibration": {"dataset": "/texts/some.txt"},
            "labels": labels,
        }
    )


def block_record(index: int) -> BlockRecord:
    name = f"blocks/{index:05d}"
    return BlockRecord(
        index=index,
        name=f"{name}.safetensors",
        key=f"t/local/{name}.safetensors",
        sha256=f"{index:064x}",
        bytes=1000 + index,
        relative_error=0.001 * index,
        sidecar_key=f"t/local/{name}.json",
        sidecar_sha256=f"{index + 1:064x}",
    )


def failure(attempt: int = 1) -> Failure:
    return Failure(code="out-of-memory", message="device 0 ran out", retryable=True, attempt=attempt)
