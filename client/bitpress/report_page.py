"""A report as one HTML page that needs nothing else: no request, no script; light and dark, on a phone and on paper."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath

from bitpress.artifacts import BlockReport, Interval, LinearReport, Report
from bitpress.plots import Mark, Point, columns, rows, scatter

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4; --back: #fff; --card: #f6f8fa;
  --mark: #2f6f9f; --good: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --soft: #9aa5b1; --line: #353c45; --back: #14181d;
  --card: #1c2229; --mark: #6fb1e0; --good: #58c48c; --bad: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.25rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--back); }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .2rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; } .note { color: var(--soft); font-size: .9rem; }
section { margin: 1rem 0; padding: 1rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.tiles div { padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg rect, svg circle { fill: var(--mark); } svg .grid { stroke: var(--line); }
svg .interval { stroke: var(--mark); stroke-width: 2; }
small { color: var(--soft); }
pre { overflow-x: auto; font-size: .82rem; margin: 0; } details summary { cursor: pointer; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
@media (max-width: 40rem) { svg text { font-size: 19px; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } section, .tiles div { break-inside: avoid;
  background: none; } section.long { break-inside: auto; } .scroll { overflow: visible; } }
"""


def to_html(report: Report) -> str:
    """The whole report. Every word of it that a user or a model has written is escaped."""
    title = f"{report.spec.model.uri}: {report.spec.method.kind}, {report.bits_per_weight:.3f} bits per weight"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _tiles(report),
        *_verdict(report),
        *([_quality(report)] if report.perplexity else []),
        _blocks(report),
        _linears(report),
        _ledger(report),
        _cost(report),
        _section("Spec", f"<pre>{escape(report.spec.model_dump_json(indent=2))}</pre>"),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _tiles(report: Report) -> str:
    worst = max((found.increase_percent for found in report.perplexity.values()), default=None)
    furthest = max((found.kl for found in report.divergence.values()), default=None)
    least = min((found.agreement for found in report.divergence.values()), default=None)
    tiles = [
        (f"{report.bits_per_weight:.3f}", "bits per weight, all stored bits counted"),
        (f"{report.bytes_before / report.bytes_after:.2f} x", "smaller linears than in the checkpoint"),
        *([(f"{worst:+.2f} %", "perplexity, on the worst text")] if worst is not None else []),
        *([(f"{furthest:.4f}", "KL divergence, nats")] if furthest is not None else []),
        *([(f"{least:.1%}", "same top token as dense")] if least is not None else []),
        (_duration(sum(report.phases.values())), "in all phases"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return f'<div class="tiles">{cells}</div>'


def _verdict(report: Report) -> list[str]:
    if problem := report.problem():
        return [f'<section><h2 class="bad">{escape(problem.code)}</h2>{escape(problem.message)}</section>']
    return ['<section><h2 class="good">passes its gate</h2></section>'] if report.gate_misses == () else []


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
    note = (
        f"Windows of {report.spec.evaluation.sequence_length} tokens. Below each value: its 95 % interval, by "
        "bootstrap over the windows. Lower perplexity and divergence are better."
    )
    plots = "".join(_perplexity_plot(report, name) for name in report.perplexity)
    return _section("Quality", f"{_note(note)}{_table(head, lines)}{plots}")


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
        _note("Mean over a block's linears of the squared error of their outputs by the squared outputs."),
        columns(errors, "block", "Relative error of the linears by block"),
    ]
    if report.error_growth:
        growth = [
            Mark(str(index), value, f"behind block {index}: {value:.5f}")
            for index, value in enumerate(report.error_growth)
        ]
        parts += [
            "<h2>Error through the network</h2>",
            _note("Squared difference of the hidden states from the dense model's behind each block, by its squares."),
            columns(growth, "block", "Relative error of the hidden states behind each block"),
        ]
    return _section("Error by block", "".join(parts))


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
    table = f"<details open><summary>Every linear</summary>{_table(head, lines)}</details>"
    return f'<section class="long">{"".join(parts)}{table}</section>'


def _mark(block: BlockReport, linear: LinearReport, value: float, text: str) -> Mark:
    return Mark(str(block.index), value, f"block {block.index}, {linear.name}: {text}")


def _ledger(report: Report) -> str:
    if not report.ledger:
        return _section("Ledger", "<p>No deviation from the method.</p>")
    lines = [[entry.where, entry.kind, entry.detail] for entry in report.ledger]
    return f'<section class="long"><h2>Ledger</h2>{_table(["where", "what", "detail"], lines, words=True)}</section>'


def _cost(report: Report) -> str:
    phases = [Mark(name, seconds, _duration(seconds)) for name, seconds in report.phases.items()]
    memory = f"Peak resident memory of a process: {report.peak_bytes / 2**20:,.0f} MiB"
    if report.peak_device_bytes:
        memory += f"; of an accelerator: {report.peak_device_bytes / 2**20:,.0f} MiB"
    versions = _table(["what", "version"], [[name, version] for name, version in sorted(report.versions.items())])
    return _section("Cost", f"{rows(phases, 'Time by phase')}<p>{escape(memory)}.</p>{versions}")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], *, words: bool = False) -> str:
    cell = '<td class="words">' if words else "<td>"
    body = "".join("<tr>" + "".join(f"{cell}{_lines(text)}</td>" for text in line) + "</tr>" for line in lines)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _lines(text: str) -> str:
    first, *more = escape(text).split("\n")
    return first + "".join(f"<br><small>{line}</small>" for line in more)


def _with_interval(text: str, interval: Interval | None, form: str) -> str:
    return text if interval is None else f"{text}\n{interval.low:{form}} to {interval.high:{form}}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.1f} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
