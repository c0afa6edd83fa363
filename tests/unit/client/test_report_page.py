"""The report as a page: whole, with nothing from elsewhere, and with nothing of a user's that a browser would run."""

import itertools
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from http_answers import SPEC
from sample_report import NASTY, sample_report, sample_task

from bitpress.artifacts import GateMiss, PartFailure, Report
from bitpress.jobs import parse_spec
from bitpress.plots import Mark, Point, columns, rows, scatter, standalone
from bitpress.report_page import to_html


@pytest.fixture
def report() -> Report:
    found = sample_report(parse_spec(SPEC), blocks=30)
    linear = found.blocks[0].linears[0].model_copy(update={"name": NASTY})
    block = found.blocks[0].model_copy(update={"linears": (linear, *found.blocks[0].linears[1:])})
    return found.model_copy(update={"blocks": (block, *found.blocks[1:])})


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words += data


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(report: Report) -> None:
    page = to_html(report)
    tags = Tags()
    tags.feed(page)
    assert tags.names.isdisjoint({"script", "link", "img", "iframe", "object", "form", "base"})
    assert tags.attributes.isdisjoint({"src", "href", "style"})
    assert not any(name.startswith("on") for name in tags.attributes)
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert NASTY in tags.words
    assert len(page) < 1_000_000


def test_tasks_are_shown_where_there_are_any(report: Report) -> None:
    assert "Zero-shot" not in to_html(report)
    page = to_html(report.model_copy(update={"tasks": {"piqa": sample_task()}}))
    assert "Zero-shot" in page and "0.6500 ± 0.0480" in page and "-5.0%" in page


def test_it_shows_every_linear_and_every_figure(report: Report) -> None:
    page = to_html(report)
    # Perplexity, error by block, error growth, bits, outliers, phases.
    assert page.count("<svg") == 6
    assert page.count("self_attn.q_proj</td>") == 29
    for words in ("17.000 to 19.000", "+11.11 %", "0.05000", "87.50%"):
        assert words in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate_misses": ()}, "passes its gate"),
        ({"gate_misses": (GateMiss(metric="kl_max", dataset="a<b", limit=0.01, found=0.05),)}, "a&lt;b: kl_max is"),
        ({"failures": (PartFailure(part="quality", code="out-of-memory", message="x"),)}, "quality: out-of-memory: x"),
    ],
)
def test_it_says_what_the_result_falls_short_of(report: Report, changes: dict[str, object], words: str) -> None:
    assert words not in to_html(report)
    assert words in to_html(report.model_copy(update=changes))


def test_values_far_apart_are_shown_by_their_logarithms() -> None:
    values = (10.0, 100.0, 1000.0)
    points = [Point(float(place), value, (value, value), "", "") for place, value in enumerate(values)]
    marks = [float(mark.attrib["cy"]) for mark in ElementTree.fromstring(scatter(points, "x", "y")).iter("circle")]
    assert marks[0] - marks[1] == pytest.approx(marks[1] - marks[2], abs=0.2)


def test_names_of_points_that_lie_close_do_not_hide_each_other() -> None:
    names = ["GPTQ 4", "RTN 4", "SpQR 3", "SEPTQ 4"]
    points = [Point(4 + place / 20, 50.0 + place, (50.0, 55.0), name, "") for place, name in enumerate(names)]
    far = [Point(2.0, 40.0, (40.0, 40.0), "left", ""), Point(8.0, 60.0, (60.0, 60.0), "right", "")]
    tree = ElementTree.fromstring(scatter([*points, *far], "bits", "perplexity"))
    boxes = []
    for text in tree.iter("text"):
        if text.text in {*names, "left", "right"}:
            width, at = 6.6 * len(text.text), float(text.attrib["x"])
            left = at if text.attrib["text-anchor"] == "start" else at - width
            boxes.append((left, left + width, float(text.attrib["y"])))
    assert len(boxes) == 6
    for one, other in itertools.combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= 12, (one, other)


def test_a_report_without_evaluation_has_a_page(report: Report) -> None:
    bare = report.model_copy(update={"perplexity": {}, "divergence": {}, "error_growth": ()})
    page = to_html(bare)
    assert "Quality" not in page and page.count("<svg") == 4


def test_figures_are_well_formed_and_marks_lie_inside() -> None:
    marks = [Mark(str(place // 2), value, f"<{place}>") for place, value in enumerate([0.0, 1.0, 3.0, 2.0])]
    points = [Point(3.0, 20.0, (19.0, 21.0), "a", "a & b"), Point(16.0, 18.0, (18.0, 18.0), "dense", "c")]
    far = [*points, Point(2.0, 4000.0, (3000.0, 5000.0), "far", "d")]
    for figure in (
        columns(marks, "block", 'what "it" is'),
        rows(marks, "time"),
        scatter(points, "bits", "perplexity"),
        scatter(far, "bits", "perplexity", far[:2]),
        standalone(scatter(far, "bits", "perplexity")).replace("xmlns", "ns"),
    ):
        tree = ElementTree.fromstring(figure)
        width, height = (float(number) for number in tree.attrib["viewBox"].split()[2:])
        for shape in tree.iter():
            for side, limit in (("x", width), ("y", height), ("cx", width), ("cy", height)):
                assert 0 <= float(shape.attrib.get(side, 0)) <= limit
    heights = [float(bar.attrib["height"]) for bar in ElementTree.fromstring(columns(marks, "", "")).iter("rect")]
    assert heights == pytest.approx([0, heights[2] / 3, heights[2], heights[2] * 2 / 3], abs=0.11)
