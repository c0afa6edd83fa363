"""Perplexity against bits per weight as the geometry of a figure, which a template draws as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitpress.plots import round_ticks
from bitpress_service.web.rendering import number

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40


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
    x_ticks = round_ticks([bits for _, bits, _ in points])
    y_ticks = round_ticks([*(perplexity for _, _, perplexity in points), *dense])

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
