"""A report as one HTML page that needs nothing else: no request, no script; light and dark, on a phone and on paper."""

from html import escape
from pathlib import PurePath

from bitpress.artifacts import BlockReport, Interval, LinearReport, Report
from bitpress.pages import note, page, section, table
from bitpress.plots import Mark, Point, columns, rows, scatter


def to_html(report: Report) -> str:
    """The whole report. Every word of it that a user or a model has written is escaped."""
    title = f"{report.spec.model.uri}: {report.spec.method.kind}, {report.bits_per_weight:.3f} bits per weight"
    parts = [
        _tiles(report),
        *_verdict(report),
        _load_check(report),
        *([_quality(report)] if report.perplexity else []),
        *([_tasks(report)] if report.tasks else []),
        _blocks(report),
        _linears(report),
        _ledger(report),
        _cost(report),
        section("Provenance", table(["what", ""], report.provenance.rows(), words=True)),
        section("Spec", f"<pre>{escape(report.spec.model_dump_json(indent=2))}</pre>"),
    ]
    return page(title, parts)


def _tiles(report: Report) -> str:
    worst = max((found.increase_percent for found in report.perplexity.values()), default=None)
    furthest = max((found.kl for found in report.divergence.values()), default=None)
    least = min((found.agreement for found in report.divergence.values()), default=None)
    drop = max((task.drop.value for task in report.tasks.values()), default=None)
    tiles = [
        (f"{report.bits_per_weight:.3f}", "bits per weight, all stored bits counted"),
        (f"{report.bytes_before / report.bytes_after:.2f} x", "smaller linears than in the checkpoint"),
        *([(f"{worst:+.2f} %", "perplexity, on the worst text")] if worst is not None else []),
        *([(f"{furthest:.4f}", "KL divergence, nats")] if furthest is not None else []),
        *([(f"{least:.1%}", "same top token as dense")] if least is not None else []),
        *([(f"{-drop:+.1%}", "accuracy, on the worst task")] if drop is not None else []),
        (_duration(sum(report.phases.values())), "in all phases"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return f'<div class="tiles">{cells}</div>'


def _verdict(report: Report) -> list[str]:
    if problem := report.problem():
        return [f'<section><h2 class="bad">{escape(problem.code)}</h2>{escape(problem.message)}</section>']
    return ['<section><h2 class="good">passes its gate</h2></section>'] if report.gate_misses == () else []


def _load_check(report: Report) -> str:
    mark = {"failed": ' class="bad"', "not-done": ""}.get(report.load_check.outcome, ' class="good"')
    return f"<section><h2{mark}>Load check</h2>{escape(report.load_check.words())}</section>"


def _quality(report: Report) -> str:
    head = ["text", "dense", "compressed", "increase", "KL divergence", "same top token", "bits per byte", "windows"]
    lines = []
    for name, found in report.perplexity.items():
        apart = report.divergence[name]
        per_byte = (found.dense_bits_per_byte, found.compressed_bits_per_byte)
        lines.append(
            [
                PurePath(name).name,
                _with_interval(f"{found.dense:.3f}", found.dense_interval, ".3f"),
                _with_interval(f"{found.compressed:.3f}", found.compressed_interval, ".3f"),
                _with_interval(f"{found.increase_percent:+.2f} %", found.increase_interval, "+.2f"),
                _with_interval(f"{apart.kl:.5f}", apart.kl_interval, ".5f"),
                f"{apart.agreement:.2%}",
                " → ".join("-" if value is None else f"{value:.4f}" for value in per_byte),
                str(found.num_windows),
            ]
        )
    remark = (
        f"Windows of {report.spec.evaluation.sequence_length} tokens. Below each value: its 95 % interval, by "
        "bootstrap over the windows. Lower perplexity and divergence are better."
    )
    plots = "".join(_perplexity_plot(report, name) for name in report.perplexity)
    return section("Quality", f"{note(remark)}{table(head, lines)}{plots}")


def _tasks(report: Report) -> str:
    head = ["task", "dense", "compressed", "drop", "normalized, dense", "compressed", "examples"]
    lines = [
        [
            name,
            *(str(found) for found in (task.dense, task.compressed, task.drop)),
            *(str(found or "-") for found in (task.dense_normalized, task.compressed_normalized)),
            f"{task.num_examples:,}",
        ]
        for name, task in report.tasks.items()
    ]
    remark = "Accuracy by lm-eval, zero-shot, with its standard error; that of the drop is of the differences."
    return section("Zero-shot tasks", note(remark) + table(head, lines))


def _perplexity_plot(report: Report, name: str) -> str:
    found = report.perplexity[name]
    dense_bits = 8 * report.bytes_before / report.num_weights
    pairs = (
        ("dense", dense_bits, found.dense, found.dense_interval),
        (report.spec.method.kind, report.bits_per_weight, found.compressed, found.compressed_interval),
    )
    points = [
        Point(
            bits,
            value,
            (interval.low, interval.high) if interval else (value, value),
            f"{which} {value:.2f}",
            f"{which}: {bits:.3f} bits, perplexity {value:.3f}",
        )
        for which, bits, value, interval in pairs
    ]
    what = f"Perplexity on {PurePath(name).name} against bits per weight"
    return f"<h2>{escape(what)}</h2>" + scatter(points, "bits per weight", what)


def _blocks(report: Report) -> str:
    errors = [
        Mark(str(block.index), block.relative_error, f"block {block.index}: {block.relative_error:.5f}")
        for block in report.blocks
    ]
    parts = [
        note("Mean over a block's linears of the squared error of their outputs by the squared outputs."),
        columns(errors, "block", "Relative error of the linears by block"),
    ]
    if report.error_growth:
        growth = [
            Mark(str(index), value, f"behind block {index}: {value:.5f}")
            for index, value in enumerate(report.error_growth)
        ]
        parts += [
            "<h2>Error through the network</h2>",
            note("Squared difference of the hidden states from the dense model's behind each block, by its squares."),
            columns(growth, "block", "Relative error of the hidden states behind each block"),
        ]
    return section("Error by block", "".join(parts))


def _linears(report: Report) -> str:
    linears = [(block, linear) for block in report.blocks for linear in block.linears]
    bits = [
        _mark(block, linear, linear.bits_per_weight, f"{linear.bits_per_weight:.3f} bits") for block, linear in linears
    ]
    parts = ["<h2>Bits per weight by linear</h2>", columns(bits, "block", "Bits per weight by linear")]
    if any(linear.outlier_fraction for _, linear in linears):
        outliers = [
            _mark(block, linear, 100 * linear.outlier_fraction, f"{linear.outlier_fraction:.3%}")
            for block, linear in linears
        ]
        parts += ["<h2>Outliers by linear, percent</h2>", columns(outliers, "block", "Outliers by linear, percent")]
    head = ["linear", "shape", "bits", "relative error", "outliers", "damping", "tokens", "seconds"]
    lines = [
        [
            f"{block.index} {linear.name}",
            f"{linear.shape[0]} x {linear.shape[1]}",
            f"{linear.bits_per_weight:.3f}",
            f"{linear.relative_error:.5f}",
            f"{linear.outlier_fraction:.3%}",
            "-" if linear.damping_used is None else f"{linear.damping_used:g}",
            f"{linear.num_tokens:,}",
            f"{linear.seconds:.2f}",
        ]
        for block, linear in linears
    ]
    every = f"<details open><summary>Every linear</summary>{table(head, lines)}</details>"
    return f'<section class="long">{"".join(parts)}{every}</section>'


def _mark(block: BlockReport, linear: LinearReport, value: float, text: str) -> Mark:
    return Mark(str(block.index), value, f"block {block.index}, {linear.name}: {text}")


def _ledger(report: Report) -> str:
    if not report.ledger:
        return section("Ledger", "<p>No deviation from the method.</p>")
    lines = [[entry.where, entry.kind, entry.detail] for entry in report.ledger]
    return f'<section class="long"><h2>Ledger</h2>{table(["where", "what", "detail"], lines, words=True)}</section>'


def _cost(report: Report) -> str:
    phases = [Mark(name, seconds, _duration(seconds)) for name, seconds in report.phases.items()]
    head = ["part", "device", "peak memory, MiB", "of its accelerator, MiB", "read, MB", "written, MB"]
    lines = [
        [
            cost.part,
            cost.device,
            f"{cost.peak_bytes / 2**20:,.0f}",
            f"{cost.peak_device_bytes / 2**20:,.0f}" if cost.peak_device_bytes else "-",
            f"{cost.bytes_read / 1e6:,.1f}",
            f"{cost.bytes_written / 1e6:,.1f}",
        ]
        for cost in report.processes
    ]
    return section("Cost", rows(phases, "Time by phase") + table(head, lines))


def _with_interval(text: str, interval: Interval | None, form: str) -> str:
    return text if interval is None else f"{text}\n{interval.low:{form}} to {interval.high:{form}}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.1f} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
