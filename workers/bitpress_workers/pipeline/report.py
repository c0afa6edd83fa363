"""The report of a job: numbers first gathered into Report, then written for people."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from bitpress.artifacts import BlockReport, LedgerEntry, LinearReport, PerplexityReport, Report
from bitpress.jobs import JobSpec
from bitpress.sweeps import Comparison, MemberResult
from bitpress_workers.pipeline.publish import Sidecar

LIBRARIES = ("bitpress", "torch", "transformers", "safetensors", "ray", "datasets")


def versions(device: str) -> dict[str, str]:
    """Libraries, interpreter and machine: bits are promised per machine type and versions, not across."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "device": device}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def make_report(
    spec: JobSpec,
    sidecars: Sequence[Sidecar],
    perplexity: Mapping[str, PerplexityReport],
    bytes_before: int,
    phases: Mapping[str, float],
    peaks: Sequence[tuple[int, int]],
    device: str,
    losses: Sequence[LedgerEntry],
) -> Report:
    """Gather a job's evidence.

    bytes_before: of all compressed linears' weights in the checkpoint. peaks: (resident memory,
    accelerator memory) in bytes of every process. losses: workers that were replaced.
    """
    linears = [linear for sidecar in sidecars for linear in sidecar.report.linears]
    num_weights = sum(linear.shape[0] * linear.shape[1] for linear in linears)
    stored_bits = sum(_stored_bits(linear) for linear in linears)
    return Report(
        spec=spec,
        bits_per_weight=stored_bits / num_weights,
        num_weights=num_weights,
        bytes_before=bytes_before,
        bytes_after=stored_bits // 8,
        perplexity=dict(perplexity),
        blocks=tuple(sidecar.report for sidecar in sidecars),
        phases=dict(phases),
        peak_bytes=max(host for host, _ in peaks),
        peak_device_bytes=max(device_bytes for _, device_bytes in peaks),
        ledger=tuple(entry for sidecar in sidecars for entry in sidecar.ledger) + tuple(losses),
        versions=versions(device),
    )


def to_markdown(report: Report) -> str:
    """The report as a page: the result, the evidence by linear, the cost, the ledger."""
    parts = [
        summary(report),
        "## Linears\n\nRelative error: squared error of a linear's outputs on the calibration tokens, "
        "divided by its squared outputs.",
        _table(
            ["linear", "shape", "bits per weight", "relative error", "outliers", "damping", "seconds"],
            [_linear_row(block, linear) for block in report.blocks for linear in block.linears],
        ),
        "## Cost",
        _table(["phase", "seconds"], [[name, f"{seconds:.1f}"] for name, seconds in report.phases.items()]),
        f"Peak resident memory of a process: {report.peak_bytes / 2**20:,.0f} MiB.",
        "## Ledger\n\n" + (_ledger(report) or "No deviation from the method."),
        "## Versions",
        _table(["what", "version"], [[name, version] for name, version in sorted(report.versions.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def summary(report: Report) -> str:
    """The result in one table, and what it was made with."""
    spec = report.spec
    parts = [
        f"# {spec.model.uri}: {spec.method.kind}, {report.bits_per_weight:.3f} bits per weight",
        _table(
            ["", "before", "after"],
            [
                ["bytes of the linears", f"{report.bytes_before:,}", f"{report.bytes_after:,}"],
                *([f"perplexity, {name}", f"{p.dense:.4f}", f"{p.compressed:.4f}"]
                  for name, p in report.perplexity.items()),
            ],
        ),
        f"Method: `{spec.method.model_dump_json()}`",
        f"Calibration: `{spec.calibration.model_dump_json()}`",
    ]  # fmt: skip
    return "\n\n".join(parts)


def compared(comparison: Comparison) -> str:
    """A sweep's members side by side, as a page; the smallest first."""
    datasets = list(comparison.dense)
    head = [
        "member",
        "bits per weight",
        *(f"perplexity, {name}" for name in datasets),
        "mean relative error",
        "seconds",
    ]
    dense = ["dense", "", *(f"{value:.4f}" for value in comparison.dense.values()), "", ""]
    parts = [
        "# Comparison",
        _table(head, [dense, *(_member_row(member, datasets) for member in comparison.members)]),
        "Seconds: of solving this member's linears alone; all else was shared.",
        "\n".join(f"* {member.name}: `{member.method.model_dump_json()}`" for member in comparison.members),
    ]
    return "\n\n".join(parts) + "\n"


def _member_row(member: MemberResult, datasets: Sequence[str]) -> list[str]:
    if member.error is not None:
        return [member.name, f"{member.error}: {member.message}", *("" for _ in datasets), "", ""]
    return [
        member.name,
        f"{member.bits_per_weight:.3f}",
        *(f"{member.perplexity[name]:.4f}" for name in datasets),
        f"{member.relative_error:.5f}",
        f"{member.seconds:.1f}",
    ]


def _linear_row(block: BlockReport, linear: LinearReport) -> list[str]:
    damping = "" if linear.damping_used is None else f"{linear.damping_used:g}"
    return [
        f"{block.index} {linear.name}",
        f"{linear.shape[0]} x {linear.shape[1]}",
        f"{linear.bits_per_weight:.3f}",
        f"{linear.relative_error:.5f}",
        f"{linear.outlier_fraction:.3%}",
        damping,
        f"{linear.seconds:.2f}",
    ]


def _ledger(report: Report) -> str:
    return "\n".join(f"* {entry.where}: {entry.detail} (`{entry.kind}`)" for entry in report.ledger)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _stored_bits(linear: LinearReport) -> int:
    return round(linear.bits_per_weight * linear.shape[0] * linear.shape[1])
