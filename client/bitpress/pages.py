"""Pages that need nothing else: no request, no script; light and dark, on a phone and on paper."""

from collections.abc import Iterable, Sequence
from html import escape

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
svg .front { fill: none; stroke: var(--good); stroke-width: 1.5; }
small { color: var(--soft); }
pre { overflow-x: auto; font-size: .82rem; margin: 0; } details summary { cursor: pointer; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
@media (max-width: 40rem) { svg text { font-size: 19px; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } section, .tiles div { break-inside: avoid;
  background: none; } section.long { break-inside: auto; } .scroll { overflow: visible; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; parts: HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A card; content: HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def note(text: str) -> str:
    """A remark in small letters."""
    return f'<p class="note">{escape(text)}</p>'


def table(head: Sequence[str], lines: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """Cells are text, whose further lines are small; words: they may be broken."""
    cell = '<td class="words">' if words else "<td>"
    body = "".join("<tr>" + "".join(f"{cell}{_lines(text)}</td>" for text in line) + "</tr>" for line in lines)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _lines(text: str) -> str:
    first, *more = escape(text).split("\n")
    return first + "".join(f"<br><small>{line}</small>" for line in more)
