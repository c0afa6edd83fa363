"""Jobs side by side: by bits, with the front of those that nothing beats, and refused when they are not alike."""

import csv

import pytest
from http_answers import SPEC
from sample_report import sample_report

from bitpress.artifacts import Report
from bitpress.comparison import COLUMNS, compare, differences, require_same_evaluation, to_csv
from bitpress.errors import Conflict
from bitpress.jobs import parse_spec

TEXT = "/texts/held-out.txt"


def sample(bits: float, perplexity: float) -> Report:
    return sample_report(parse_spec(SPEC), bits=bits, perplexity=perplexity)


def test_jobs_stand_by_bits_and_the_front_is_what_nothing_beats() -> None:
    reports = {"four": sample(4, 19), "three": sample(3, 21), "worse": sample(3.5, 22), "two": sample(2, 40)}
    rows = compare(reports)
    assert [row["job"] for row in rows] == ["two", "three", "worse", "four"]
    assert [row["on_front"] for row in rows] == ["yes", "yes", "no", "yes"]
    assert [row["perplexity"] for row in rows] == [40, 21, 22, 19]


def test_csv_says_what_the_rows_say() -> None:
    rows = compare({"a, b": sample(4, 19), "c": sample(3, 21)})
    read = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [tuple(row) for row in read] == [COLUMNS, COLUMNS]
    assert [row["job"] for row in read] == ["c", "a, b"]
    assert [float(row["kl"]) for row in read] == [row["kl"] for row in rows]


def test_jobs_that_were_evaluated_alike_may_be_compared() -> None:
    reports = {"a": sample(4, 19), "b": sample(3, 21)}
    assert differences(reports) == []
    require_same_evaluation(reports)


def test_what_is_not_alike_is_named() -> None:
    one = sample(4, 19)
    shorter = one.perplexity[TEXT].model_copy(update={"tokens_sha256": "f" * 64})
    other_model = one.spec.model_copy(update={"model": one.spec.model.model_copy(update={"uri": "/other"})})
    for changes, words in (
        ({"perplexity": {TEXT: shorter}}, "the windows of /texts/held-out.txt"),
        ({"perplexity": {}, "divergence": {}}, "b: none"),
        ({"spec": other_model}, "b: /other"),
    ):
        with pytest.raises(Conflict, match=words):
            require_same_evaluation({"a": one, "b": one.model_copy(update=changes)})
