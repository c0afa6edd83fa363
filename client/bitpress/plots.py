"""Figures as inline SVG: drawn in the colours of the page they stand in, read without scripts.

Every mark has a title, so that its numbers are there for whoever points at it or has the page read aloud.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, TALL = 640, 220, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 34
MOST_TICKS = 6
ROW = 26  # height of a horizontal bar
LETTER, LINE = 6.6, 12.0  # of a label: the width of a letter, about, and its height
BESIDE = 9.0  # from a point's middle to its label
LOGARITHMIC = 20.0  # from this ratio of largest to smallest on, values are shown by their logarithms

# Of a figure that stands alone; a page that holds figures has its own.
STYLE = """svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#5b6470}rect,circle{fill:#2f6f9f}
.grid{stroke:#d9dee4}.interval{stroke:#2f6f9f;stroke-width:2}.front{fill:none;stroke:#1a7f4b;stroke-width:1.5}
@media(prefers-color-scheme:dark){svg{background:#14181d}text{fill:#9aa5b1}rect,circle{fill:#6fb1e0}
.grid{stroke:#353c45}.interval{stroke:#6fb1e0}.front{stroke:#58c48c}}"""


Box = tuple[float, float, float, float]  # left, right, top, bottom


class Mark(NamedTuple):
    """One value. `place` stands on the axis below, `title` says it all."""

    place: str
    value: float
    title: str


class Point(NamedTuple):
    """A value with an interval, (value, value) where there is none."""

    x: float
    y: float
    interval: tuple[float, float]
    name: str
    title: str


def round_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below the least to above the largest value."""
    low, high = min(values), max(values)
    span = high - low or abs(high) * 0.1 or 1.0
    rough = span / (MOST_TICKS - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [float(f"{place * step:.10g}") for place in range(first, last + 1)]


def columns(marks: Sequence[Mark], axis: str, what: str) -> str:
    """A column for each mark; neighbours of one place share a label. axis: of places; what: is shown."""
    ticks = round_ticks([0.0, *(mark.value for mark in marks)])
    y = _scale(ticks, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(marks)
    bars = [
        f'<rect x="{LEFT + place * step:.1f}" y="{y(mark.value):.1f}" width="{max(step * 0.82, 0.6):.2f}" '
        f'height="{y(0) - y(mark.value):.1f}"><title>{escape(mark.title)}</title></rect>'
        for place, mark in enumerate(marks)
    ]
    starts = [place for place, mark in enumerate(marks) if not place or mark.place != marks[place - 1].place]
    labels = [
        _text(LEFT + start * step + step / 2, HEIGHT - BOTTOM + 15, marks[start].place)
        for start in starts[:: math.ceil(len(starts) / 16)]
    ]
    return _figure(what, HEIGHT, _grid(ticks, y), *bars, *labels, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, axis))


def rows(marks: Sequence[Mark], what: str) -> str:
    """A horizontal bar for each mark, named on its left, its title on its right."""
    largest = max((mark.value for mark in marks), default=0) or 1.0
    room = WIDTH - 250
    parts = []
    for number, mark in enumerate(marks):
        width = max(room * mark.value / largest, 1)
        top = number * ROW
        parts += [
            f'<rect x="110" y="{top + 4}" width="{width:.1f}" height="{ROW - 8}"/>',
            _text(102, top + 17, mark.place, "end"),
            _text(110 + width + 8, top + 17, mark.title, "start"),
        ]
    return _figure(what, ROW * max(len(marks), 1), *parts)


def scatter(points: Sequence[Point], x_axis: str, what: str, front: Sequence[Point] = ()) -> str:
    """Points with their intervals, and a line through those of `front`, by rising x.

    The upper axis is logarithmic where values are far apart.
    """
    x_ticks = round_ticks([point.x for point in points])
    y_ticks, y = _value_axis([end for point in points for end in (point.y, *point.interval)])
    x = _scale(x_ticks, LEFT, WIDTH - RIGHT)
    parts = [_text(x(tick), TALL - BOTTOM + 15, f"{tick:g}") for tick in x_ticks]
    if front:
        line = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in front)
        parts.append(f'<polyline class="front" points="{line}"/>')
    for point in points:
        low, high = (y(end) for end in point.interval)
        at = x(point.x)
        parts += [
            f'<line class="interval" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>',
            f'<circle cx="{at:.1f}" cy="{y(point.y):.1f}" r="5"><title>{escape(point.title)}</title></circle>',
        ]
    parts += _labels([(x(point.x), y(point.y), point.name) for point in points])
    return _figure(what, TALL, _grid(y_ticks, y), *parts, _text((LEFT + WIDTH - RIGHT) / 2, TALL - 3, x_axis))


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """The name of each point, given by its place, where it hides least of other names and points."""
    taken = [(x - 5, x + 5, y - 5, y + 5) for x, y, _ in points]
    found = []
    for x, y, name in points:
        width, best, least = LETTER * len(name), "", math.inf
        for rise in (7, -14, 21, -28, 35, -42, 49):
            for left, anchor in ((x + BESIDE, "start"), (x - BESIDE - width, "end")):
                box = (left, left + width, y - rise - LINE + 2, y - rise + 2)
                outside = max(LEFT - box[0], box[1] - WIDTH, -box[2], box[3] - (TALL - BOTTOM), 0.0) * LINE
                hidden = outside + sum(_common(box, other) for other in taken)
                if hidden < least:
                    at = left if anchor == "start" else left + width
                    best, least, chosen = _text(at, y - rise, name, anchor), hidden, box
        taken.append(chosen)
        found.append(best)
    return found


def _common(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[1], other[1]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[2], other[2])
    return max(width, 0.0) * max(height, 0.0)


def standalone(figure: str) -> str:
    """A figure as a file of its own."""
    return figure.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{STYLE}</style>", 1
    )


def _value_axis(values: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Ticks and scale of the upper axis of a tall figure."""
    low, high = min(values), max(values)
    if low <= 0 or high < LOGARITHMIC * low:
        ticks = round_ticks(values)
        return ticks, _scale(ticks, TALL - BOTTOM, TOP)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= MOST_TICKS // 2 else (1,)
    all_ticks = [step * 10.0**power for power in powers for step in steps]
    first = max(tick for tick in all_ticks if tick <= low)
    last = min(tick for tick in all_ticks if tick >= high)
    ticks = [tick for tick in all_ticks if first <= tick <= last]
    ends = [math.log10(tick) for tick in (first, last)]
    scale = _scale(ends, TALL - BOTTOM, TOP)
    return ticks, lambda value: scale(math.log10(value))


def _scale(ticks: Sequence[float], first: float, last: float) -> Callable[[float], float]:
    return lambda value: first + (last - first) * (value - ticks[0]) / (ticks[-1] - ticks[0])


def _grid(ticks: Sequence[float], y: Callable[[float], float]) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        + _text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end")
        for tick in ticks
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(what: str, height: float, *parts: str) -> str:
    label = escape(what, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
