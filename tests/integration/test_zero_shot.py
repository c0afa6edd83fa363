"""Zero-shot tasks: our streamed models answer as lm-eval's own model of the same checkpoint does."""

import sys
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pipeline_helpers import make_spec, run
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bitpress.artifacts import Accuracy, Report
from bitpress.errors import CalibrationError, InvalidJob
from bitpress.jobs import Evaluation, parse_spec
from bitpress.loading import load
from bitpress.tasks import KNOWN_TASKS
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.zero_shot import FILES, mean, read_zero_shot

FILES_OF_TASKS = Path(__file__).parents[1] / "data" / "zeroshot"
RTN = {"kind": "rtn", "bits": 2}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {"tasks": list(KNOWN_TASKS), "task_files": str(FILES_OF_TASKS)} | changes


def by_lm_eval(model: PreTrainedModel, checkpoint: Path, limit: int | None = None) -> Mapping[str, Any]:
    """What lm-eval says of a whole model, over the same task definitions, with its own model class."""
    opened = Checkpoint.open(str(checkpoint))
    spec = Evaluation(**evaluation(task_examples=limit))
    tasks = read_zero_shot(spec, opened.tokenizer(), opened.config).tasks
    answering = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint), batch_size=1, device="cpu")
    found: Mapping[str, Any] = evaluate(answering, {"tasks": tasks, "groups": {}}, limit=limit, bootstrap_iters=10)
    return found["results"]


def assert_same(results: Mapping[str, Any], report: Report, which: str) -> None:
    for name, task in report.tasks.items():
        for ours, theirs in ((which, "acc"), (f"{which}_normalized", "acc_norm")):
            found: Accuracy | None = getattr(task, ours)
            expected = results[name].get(f"{theirs},none")
            assert (found is None) == (expected is None), name
            if found is not None:
                assert found.value == pytest.approx(expected), name
                assert found.standard_error == pytest.approx(results[name][f"{theirs}_stderr,none"]), name


def test_both_models_are_judged_as_lm_eval_judges_them_whole(mini_model: Path, texts: Path, tmp_path: Path) -> None:
    report = run(make_spec(mini_model, texts, RTN, evaluation=evaluation(), devices=2), tmp_path / "out")
    assert list(report.tasks) == list(KNOWN_TASKS) and report.perplexity == {}
    assert_same(by_lm_eval(AutoModelForCausalLM.from_pretrained(mini_model), mini_model), report, "dense")
    assert_same(by_lm_eval(load(tmp_path / "out"), mini_model), report, "compressed")
    for name, task in report.tasks.items():
        assert task.num_examples == len((FILES_OF_TASKS / f"{name}.jsonl").read_text().splitlines())
        assert task.drop.value == pytest.approx(task.dense.value - task.compressed.value)
    page, text = ((tmp_path / "out" / file).read_text() for file in ("report.html", "report.md"))
    assert "Zero-shot tasks" in page and all(name in page and name in text for name in KNOWN_TASKS)


def test_answers_do_not_depend_on_shards_and_ride_with_perplexity(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    some = evaluation(tasks=["hellaswag", "boolq"], task_examples=2)
    with_text = some | {"datasets": [str(texts / "evaluation.txt")], "sequence_length": 64, "max_sequences": 3}
    gate = {"accuracy_drop_max": -0.9, "kl_max": 100}
    one = run(make_spec(opt_mini, texts, RTN, evaluation=some, devices=1), tmp_path / "one")
    three = run(make_spec(opt_mini, texts, RTN, evaluation=with_text, devices=3, gate=gate), tmp_path / "three")
    assert one.tasks == three.tasks and len(three.perplexity) == 1
    assert all(task.num_examples == 2 for task in one.tasks.values())
    assert three.gate_misses is not None
    assert [(miss.metric, miss.dataset) for miss in three.gate_misses] == [
        ("accuracy_drop_max", "hellaswag"), ("accuracy_drop_max", "boolq"),
    ]  # fmt: skip
    problem = three.problem()
    assert problem is not None and problem.code == "gate-failed" and "boolq: accuracy_drop_max" in problem.message


def test_every_task_is_one_that_lm_eval_knows() -> None:
    known = set(TaskManager().all_tasks)
    assert set(KNOWN_TASKS) <= known and list(FILES) == list(KNOWN_TASKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["arc-easy"]}, "/evaluation/tasks/0: .*no task 'arc-easy'; did you mean arc_easy"),
        ({"tasks": ["mmlu"]}, "no task 'mmlu'; The tasks are lambada_openai, piqa"),
        ({"tasks": ["piqa", "piqa"]}, "piqa is named twice"),
        ({"task_examples": 1}, "/evaluation/task_examples"),
    ],
)
def test_a_task_that_does_not_exist_is_refused_with_the_nearest_names(
    opt_mini: Path, texts: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        make_spec(opt_mini, texts, RTN, evaluation=evaluation(**changes))


def test_a_gate_on_tasks_takes_tasks(opt_mini: Path, texts: Path) -> None:
    gate = {"accuracy_drop_max": 0.01}
    with pytest.raises(InvalidJob, match=r"accuracy_drop_max: not evaluated, evaluation.tasks is empty"):
        make_spec(opt_mini, texts, RTN, gate=gate)
    spec = make_spec(opt_mini, texts, RTN, gate=gate, evaluation=evaluation())
    assert parse_spec(spec.model_dump(mode="json")) == spec
    with pytest.raises(InvalidJob, match=r"kl_max: not evaluated, evaluation.datasets is empty"):
        make_spec(opt_mini, texts, RTN, gate=gate | {"kl_max": 1}, evaluation=evaluation())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected one file piqa.jsonl or piqa_.*jsonl, found none"),
        ("", "expected two examples or more, found 0"),
        ('{"goal": "a", "choices": ["b", "c"], "label": 0}\n{"goal": 3}\n', "line 2: expected a JSON object with goal"),
        ("[]\n[]\n", "line 1: expected"),
    ],
)
def test_files_that_are_no_examples_are_named(
    opt_mini: Path, texts: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    """Before the first block: nothing is published."""
    (tmp_path / "tasks").mkdir()
    if content is not None:
        (tmp_path / "tasks" / "piqa_valid.jsonl").write_text(content)
    spec = make_spec(opt_mini, texts, RTN, evaluation={"tasks": ["piqa"], "task_files": str(tmp_path / "tasks")})
    with pytest.raises(CalibrationError, match=message):
        run(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "blocks").exists()


def test_a_mean_has_the_standard_error_of_a_mean() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert mean(values) == Accuracy(value=0.75, standard_error=stdev(values) / sqrt(4))


def test_workers_without_lm_eval_say_what_to_install(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bitpress_workers.pipeline.zero_shot")
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    with pytest.raises(InvalidJob, match=r"pip install 'bitpress\[eval\]'"):
        run(make_spec(opt_mini, texts, RTN, evaluation=evaluation()), tmp_path / "out")
