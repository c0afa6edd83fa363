"""Jobs side by side: by bits, with the front of those that nothing beats, and refused when they are not alike."""

import csv

import pytest
from http_answers import SPEC
from sample_report import sample_report, sample_task

from bitpress.artifacts import Report
from bitpress.comparison import COLUMNS, compare, differences, equal_groups, require_same_evaluation, to_csv
from bitpress.comparison_page import to_html
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


def test_equal_bits_are_equal_up_to_two_percent_of_the_least() -> None:
    reports = {"a": sample(3.0, 20), "b": sample(3.05, 19), "c": sample(3.07, 18), "d": sample(3.13, 17)}
    assert equal_groups(reports) == [["a", "b"], ["c", "d"]]
    assert [row["bits_group"] for row in compare(reports)] == [1, 1, 2, 2]


def test_the_page_names_jobs_escaped_and_says_what_is_not_alike() -> None:
    named = sample(4, 19).spec.model_copy(update={"name": "<b>"})
    reports = {"a": sample(4, 19).model_copy(update={"spec": named}), "b": sample(3, 500)}
    page = to_html(reports)
    assert "<b>" not in page and "&lt;b&gt;" in page and page.count("<svg") == 1 and "http" not in page
    assert "Not evaluated alike" not in page
    bare = sample(3, 21).model_copy(update={"perplexity": {}, "divergence": {}})
    assert "Not evaluated alike" in to_html(reports | {"c": bare})
    assert "None of these jobs was evaluated" in to_html({"c": bare})


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


def test_tasks_stand_beside_texts_and_are_ranked_by_accuracy() -> None:
    def with_task(report: Report, accuracy: float, prompts: str = "d") -> Report:
        task = sample_task(accuracy).model_copy(update={"prompts_sha256": prompts * 64})
        return report.model_copy(update={"tasks": {"piqa": task}})

    reports = {"a": with_task(sample(4, 19), 0.5), "b": with_task(sample(3, 21), 0.6)}
    rows = [row for row in compare(reports) if row["dataset"] == "piqa"]
    assert [(row["job"], row["accuracy"], row["on_front"]) for row in rows] == [("b", 0.6, "yes"), ("a", 0.5, "no")]
    assert all(row["perplexity"] == "" and row["accuracy_dense"] == 0.65 for row in rows)
    assert differences(reports) == []
    page = to_html(reports)
    assert page.count("<svg") == 1 and "Zero-shot accuracy" in page and "0.6000" in page
    assert "the prompts of piqa" in differences(reports | {"c": with_task(sample(3, 21), 0.6, "e")})[0]
    assert "the zero-shot tasks: a: piqa; b: piqa; c: none" in differences(reports | {"c": sample(3, 21)})[0]


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
