"""The report of a job: numbers first gathered into Report, then written for people."""

from collections.abc import Mapping, Sequence
from typing import Literal

from bitpress.artifacts import (
    BlockReport,
    GateMiss,
    Interval,
    LedgerEntry,
    LinearReport,
    LoadCheck,
    PerplexityReport,
    ProcessCost,
    Provenance,
    Report,
)
from bitpress.jobs import JobSpec
from bitpress.sweep_results import Comparison, MemberResult
from bitpress_workers.pipeline.publish import Sidecar
from bitpress_workers.pipeline.quality import Quality

Metric = Literal["perplexity_increase_percent", "kl_max", "agreement_min", "accuracy_drop_max"]


def make_report(
    spec: JobSpec,
    sidecars: Sequence[Sidecar],
    quality: Quality,
    load_check: LoadCheck,
    bytes_before: int,
    phases: Mapping[str, float],
    processes: Sequence[ProcessCost],
    provenance: Provenance,
    losses: Sequence[LedgerEntry],
) -> Report:
    """Gather a job's evidence.

    bytes_before: of all compressed linears' weights in the checkpoint. losses: workers that were replaced.
    """
    blocks = tuple(sidecar.report for sidecar in sidecars)
    num_weights, stored_bits = _weights_and_bits(blocks)
    return Report(
        spec=spec,
        bits_per_weight=stored_bits / num_weights,
        num_weights=num_weights,
        bytes_before=bytes_before,
        bytes_after=stored_bits // 8,
        perplexity=quality.perplexity,
        divergence=quality.divergence,
        error_growth=quality.error_growth,
        tasks=quality.tasks,
        gate_misses=gate_misses(spec, quality),
        failures=quality.failures,
        load_check=load_check,
        blocks=blocks,
        phases=dict(phases),
        processes=tuple(processes),
        peak_bytes=max(process.peak_bytes for process in processes),
        peak_device_bytes=max(process.peak_device_bytes for process in processes),
        ledger=tuple(entry for sidecar in sidecars for entry in sidecar.ledger) + tuple(losses),
        provenance=provenance,
    )


def bits_per_weight(blocks: Sequence[BlockReport]) -> float:
    """All stored bits of all linears by the number of their weights."""
    num_weights, stored_bits = _weights_and_bits(blocks)
    return stored_bits / num_weights


def gate_misses(spec: JobSpec, quality: Quality) -> tuple[GateMiss, ...] | None:
    """What the result misses of its gate; None without a gate, or without what it is about."""
    if spec.gate is None or quality.failures:
        return None
    found: list[tuple[str, Metric, float, int]] = []  # the last: 1, the limit is the most that passes; -1: the least
    for name, divergence in quality.divergence.items():
        found += [
            (name, "perplexity_increase_percent", quality.perplexity[name].increase_percent, 1),
            (name, "kl_max", divergence.kl, 1),
            (name, "agreement_min", divergence.agreement, -1),
        ]
    found += [(name, "accuracy_drop_max", task.drop.value, 1) for name, task in quality.tasks.items()]
    misses = []
    for name, metric, value, sign in found:
        limit = getattr(spec.gate, metric)
        if limit is not None and sign * value > sign * limit:
            misses.append(GateMiss(metric=metric, dataset=name, limit=limit, found=value))
    return tuple(misses)


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
        *([_growth(report)] if report.error_growth else []),
        "## Cost",
        _table(["phase", "seconds"], [[name, f"{seconds:.1f}"] for name, seconds in report.phases.items()]),
        _table(["part", "device", "peak memory, MiB", "of its accelerator", "read, MB", "written, MB"], _costs(report)),
        "## Ledger\n\n" + (_ledger(report) or "No deviation from the method."),
        "## Provenance",
        _table(["what", ""], [list(row) for row in report.provenance.rows()]),
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
                *(row for name, p in report.perplexity.items() for row in _perplexity_rows(name, p)),
            ],
        ),
        *([_divergence(report)] if report.divergence else []),
        *([_tasks(report)] if report.tasks else []),
        *([f"**{problem.code}**: {problem.message}"] if (problem := report.problem()) else []),
        *(["The result passes its gate."] if report.gate_misses == () else []),
        f"Load check: {report.load_check.words()}",
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
        *(f"{what}, {name}" for name in datasets for what in ("perplexity", "KL divergence")),
        "mean relative error",
        "seconds",
    ]
    dense = ["dense", "", *(cell for value in comparison.dense.values() for cell in (f"{value:.4f}", "")), "", ""]
    parts = [
        "# Comparison",
        _table(head, [dense, *(_member_row(member, datasets) for member in comparison.members)]),
        "Seconds: of solving this member's linears alone; all else was shared.",
        "\n".join(_member_line(member) for member in comparison.members),
    ]
    return "\n\n".join(parts) + "\n"


def _member_row(member: MemberResult, datasets: Sequence[str]) -> list[str]:
    if member.bits_per_weight is None:
        return [member.name, f"{member.error}", *[""] * 2 * len(datasets), "", ""]
    return [
        member.name,
        f"{member.bits_per_weight:.3f}",
        *(cell for name in datasets for cell in _quality_cells(member, name)),
        f"{member.relative_error:.5f}",
        f"{member.seconds:.1f}",
    ]


def _quality_cells(member: MemberResult, dataset: str) -> tuple[str, str]:
    if dataset not in member.perplexity:
        return "", ""
    return f"{member.perplexity[dataset]:.4f}", f"{member.kl[dataset]:.5f}"


def _member_line(member: MemberResult) -> str:
    line = f"* {member.name}: `{member.method.model_dump_json()}`"
    return line if member.error is None else f"{line}; **{member.error}**: {member.message}"


def _perplexity_rows(name: str, found: PerplexityReport) -> list[list[str]]:
    both = ((found.dense, found.dense_interval), (found.compressed, found.compressed_interval))
    rows = [[f"perplexity, {name}", *(f"{value:.4f}{_interval(interval, '.3f')}" for value, interval in both)]]
    if found.dense_bits_per_byte is not None and found.compressed_bits_per_byte is not None:
        per_byte = (found.dense_bits_per_byte, found.compressed_bits_per_byte)
        rows.append([f"bits per byte, {name}", *(f"{value:.4f}" for value in per_byte)])
    return rows


def _divergence(report: Report) -> str:
    rows = [
        [
            name,
            f"{report.perplexity[name].increase_percent:+.2f} %"
            + _interval(report.perplexity[name].increase_interval, "+.2f"),
            f"{found.kl:.5f}{_interval(found.kl_interval, '.5f')}",
            f"{found.agreement:.2%}",
            f"{report.perplexity[name].num_windows}",
        ]
        for name, found in report.divergence.items()
    ]
    head = ["text", "perplexity's increase", "KL divergence, nats", "same top token", "windows"]
    return _table(head, rows) + "\n\nIn brackets: 95 % intervals, by bootstrap over the windows."


def _tasks(report: Report) -> str:
    head = ["task", "dense", "compressed", "drop", "normalized, dense", "compressed", "examples"]
    rows = [
        [
            name,
            *(str(found) for found in (task.dense, task.compressed, task.drop)),
            *(str(found or "") for found in (task.dense_normalized, task.compressed_normalized)),
            f"{task.num_examples}",
        ]
        for name, task in report.tasks.items()
    ]
    return _table(head, rows) + "\n\nZero-shot accuracy, by lm-eval, with its standard error."


def _growth(report: Report) -> str:
    rows = [[str(index), f"{error:.5f}"] for index, error in enumerate(report.error_growth)]
    return (
        "## Error through the network\n\nSquared difference of the compressed model's hidden states from the dense "
        "one's behind each block, divided by the latter's squares.\n\n" + _table(["block", "relative error"], rows)
    )


def _interval(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" ({interval.low:{form}} to {interval.high:{form}})"


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


def _costs(report: Report) -> list[list[str]]:
    return [
        [
            cost.part,
            cost.device,
            f"{cost.peak_bytes / 2**20:,.0f}",
            f"{cost.peak_device_bytes / 2**20:,.0f}" if cost.peak_device_bytes else "",
            f"{cost.bytes_read / 1e6:,.1f}",
            f"{cost.bytes_written / 1e6:,.1f}",
        ]
        for cost in report.processes
    ]


def _ledger(report: Report) -> str:
    return "\n".join(f"* {entry.where}: {entry.detail} (`{entry.kind}`)" for entry in report.ledger)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _weights_and_bits(blocks: Sequence[BlockReport]) -> tuple[int, int]:
    linears = [linear for block in blocks for linear in block.linears]
    counts = [linear.shape[0] * linear.shape[1] for linear in linears]
    bits = [round(linear.bits_per_weight * count) for linear, count in zip(linears, counts, strict=True)]
    return sum(counts), sum(bits)
