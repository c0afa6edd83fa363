"""Evidence as figures on a page: blocks as they are published, linears as heat tables, totals of a report.

A heat table is a table: it is read without colours and without scripts.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitpress.artifacts import BlockReport, LinearReport, Report
from bitpress_service.jobstore import BlockRecord
from bitpress_service.web.rendering import number, percent, size

LEVELS = 8  # shades of a heat table
LOGARITHMIC = 20.0  # from this ratio of largest to smallest on, shades follow the logarithm

_EXPERT = re.compile(r"\.\d+(?=\.|$)")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Measure:
    """Something known of every linear; combine: what it comes to for the experts of one place."""

    title: str
    note: str
    value_of: Callable[[LinearReport], float]
    combine: Callable[[Sequence[float]], float]
    write: Callable[[float], str]


ERROR = Measure(
    "Relative error",
    "squared error of a linear's outputs on the calibration tokens, by its squared outputs",
    lambda linear: linear.relative_error,
    max,
    number,
)
BITS = Measure(
    "Bits per weight",
    "all stored bits of a linear, statistics and indices included, by its number of weights",
    lambda linear: linear.bits_per_weight,
    mean,
    lambda value: number(value, 4),
)
OUTLIERS = Measure(
    "Outliers",
    "share of a linear's weights that are kept in 16 bits",
    lambda linear: linear.outlier_fraction,
    mean,
    percent,
)


@dataclass(frozen=True)
class Cell:
    """One value: its shade, 0 to LEVELS - 1 (None: there is no value), and how it is written."""

    level: int | None
    text: str
    title: str


@dataclass(frozen=True)
class Row:
    name: str
    mean: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeatTable:
    """One figure of every linear: a row for each place in a block, a column for each block."""

    title: str
    note: str
    blocks: tuple[int, ...]
    rows: tuple[Row, ...]
    low: str
    high: str
    is_logarithmic: bool


@dataclass(frozen=True)
class Bar:
    """A block's mean relative error; `height` is a share of the largest."""

    index: int
    height: float
    title: str


@dataclass(frozen=True)
class Bars:
    bars: tuple[Bar, ...]
    total: int
    largest: str


@dataclass(frozen=True)
class Totals:
    """What a report comes to, over all linears."""

    ratio: float
    relative_error: float
    outlier_fraction: float
    seconds: float


def block_cells(published: Mapping[int, BlockRecord], total: int) -> list[Cell]:
    """The blocks of a model in their order, those that are published shaded by their error."""
    shade = _shade([block.relative_error for block in published.values()])
    return [_block_cell(index, published.get(index), shade) for index in range(total)]


def _block_cell(index: int, block: BlockRecord | None, shade: Callable[[float], int]) -> Cell:
    if block is None:
        return Cell(None, "not yet", f"block {index}: not yet published")
    text = f"relative error {number(block.relative_error)}, {size(block.bytes)}"
    return Cell(shade(block.relative_error), text, f"block {index}: {text}")


def block_bars(published: Mapping[int, BlockRecord], total: int) -> Bars | None:
    """The error of each block that is published; None before the first."""
    if not published:
        return None
    largest = max(block.relative_error for block in published.values())
    bars = tuple(
        Bar(
            index,
            published[index].relative_error / largest if largest else 0.0,
            f"block {index}: relative error {number(published[index].relative_error)}",
        )
        for index in sorted(published)
    )
    return Bars(bars, total, number(largest))


def heat_tables(blocks: Sequence[BlockReport]) -> tuple[HeatTable, ...]:
    """Relative error, bits per weight and share of outliers of every linear of a model.

    Experts of one place are one row: the worst of their errors, the mean of their bits and outliers.
    """
    return tuple(_heat_table(blocks, measure) for measure in (ERROR, BITS, OUTLIERS))


def _heat_table(blocks: Sequence[BlockReport], measure: Measure) -> HeatTable:
    write = measure.write
    values = {block.index: by_place(block, measure) for block in blocks}
    places = list(dict.fromkeys(place for row in values.values() for place in row))
    everything = [value for row in values.values() for value in row.values()]
    shade = _shade(everything)

    def cell(index: int, place: str) -> Cell:
        value = values[index].get(place)
        if value is None:
            return Cell(None, "none", f"block {index} has no {place}")
        return Cell(shade(value), write(value), f"block {index}, {place}: {write(value)}")

    rows = tuple(
        Row(
            place,
            write(mean([row[place] for row in values.values() if place in row])),
            tuple(cell(index, place) for index in values),
        )
        for place in places
    )
    return HeatTable(
        measure.title,
        measure.note,
        tuple(values),
        rows,
        write(min(everything)),
        write(max(everything)),
        _is_wide(everything),
    )


def by_place(block: BlockReport, measure: Measure) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for linear in block.linears:
        found.setdefault(_EXPERT.sub(".*", linear.name), []).append(measure.value_of(linear))
    return {place: measure.combine(values) for place, values in found.items()}


def _shade(values: Sequence[float]) -> Callable[[float], int]:
    """Map values to shades: evenly, or by their logarithm when they are far apart."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale: Callable[[float], float] = math.log if _is_wide(values) else float
    span = scale(high) - scale(low) if high > low else 0.0

    def shade(value: float) -> int:
        share = (scale(value) - scale(low)) / span if span else 0.0
        return min(int(share * LEVELS), LEVELS - 1)

    return shade


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and 0 < min(values) <= max(values) / LOGARITHMIC


def totals(report: Report) -> Totals:
    """Mean error over linears, outliers over weights, size before by size after, seconds of all phases."""
    linears = [linear for block in report.blocks for linear in block.linears]
    outliers = sum(linear.outlier_fraction * linear.shape[0] * linear.shape[1] for linear in linears)
    return Totals(
        ratio=report.bytes_before / report.bytes_after,
        relative_error=mean([linear.relative_error for linear in linears]),
        outlier_fraction=outliers / report.num_weights,
        seconds=sum(report.phases.values()),
    )
