"""Perplexity against bits per weight as the geometry of a figure, which a template draws as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitpress_service.web.rendering import number

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40
MOST_TICKS = 6


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Point:
    letter: str
    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Scatter:
    """Everything in user units of a figure of WIDTH x HEIGHT; `dense` are lines of uncompressed models."""

    dataset: str
    points: tuple[Point, ...]
    dense: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def scatter(dataset: str, points: Sequence[tuple[str, float, float]], dense: Sequence[float]) -> Scatter:
    """Lay out (letter, bits per weight, perplexity) of each job, and the perplexity of what they started from."""
    x_ticks = _ticks([bits for _, bits, _ in points])
    y_ticks = _ticks([*(perplexity for _, _, perplexity in points), *dense])

    def x(bits: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * _share(bits, x_ticks), 1)

    def y(perplexity: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(perplexity, y_ticks), 1)

    return Scatter(
        dataset,
        tuple(
            Point(letter, x(bits), y(ppl), f"{letter}: {number(bits, 4)} bits, perplexity {number(ppl, 5)}")
            for letter, bits, ppl in points
        ),
        tuple(Tick(y(value), f"dense {number(value, 4)}") for value in dense),
        tuple(Tick(x(value), f"{value:g}") for value in x_ticks),
        tuple(Tick(y(value), f"{value:g}") for value in y_ticks),
    )


def _share(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below the least to above the largest value."""
    low, high = min(values), max(values)
    span = high - low or abs(high) * 0.1 or 1.0
    rough = span / (MOST_TICKS - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(place * step, 10) for place in range(first, last + 1)]
