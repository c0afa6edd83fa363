"""Zero-shot tasks: lm-eval asks and judges, the streamed models answer.

lm-eval (extra `eval`) is run once to hear all that it asks, and once for each model with that model's answers, so
that one pass over the blocks serves all tasks of all models. Prompts and metrics are lm-eval's own; where a task's
examples come from files, its prompt is built from them as lm-eval builds it from the hub's.
"""

import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bitpress.artifacts import Accuracy, TaskReport
from bitpress.errors import CalibrationError, InvalidJob
from bitpress.jobs import Evaluation
from bitpress_workers.pipeline.calibration import list_sha256
from bitpress_workers.pipeline.prompts import Answer, Prompts, Tokens

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.evaluator import evaluate
    from lm_eval.models.utils import has_bos_prefix, resolve_max_length
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.hellaswag.utils import preprocess
except ImportError as error:
    raise InvalidJob(
        f"evaluation.tasks: the workers have no lm-eval ({error}): pip install 'bitpress[eval]'"
    ) from error

CHOICE = {"output_type": "multiple_choice", "doc_to_target": "label", "doc_to_choice": "choices"}
# By lm-eval 0.4's own definitions, over what the files have: (fields, definition).
FILES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lambada_openai": (
        ("context", "target"),
        {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + target}}"},
    ),
    "piqa": (("goal", "choices", "label"), CHOICE | {"doc_to_text": "Question: {{goal}}\nAnswer:"}),
    "arc_easy": (("question", "choices", "label"), CHOICE | {"doc_to_text": "Question: {{question}}\nAnswer:"}),
    "arc_challenge": (("question", "choices", "label"), CHOICE | {"doc_to_text": "Question: {{question}}\nAnswer:"}),
    "boolq": (
        ("passage", "question", "choices", "label"),
        CHOICE | {"doc_to_text": "{{passage}}\nQuestion: {{question.rstrip('?')}}?\nAnswer:"},
    ),
    "hellaswag": (
        ("activity_label", "ctx", "endings", "label"),
        CHOICE
        | {
            "doc_to_text": lambda doc: preprocess(f"{doc['activity_label']}: {doc['ctx']}"),
            "doc_to_choice": lambda doc: [preprocess(ending) for ending in doc["endings"]],
        },
    ),
    "winogrande": (
        ("contexts", "continuation", "label"),  # the same continuation, scored behind either context
        {
            "output_type": "multiple_choice",
            "doc_to_text": "label",
            "doc_to_target": "continuation",
            "doc_to_choice": "contexts",
        },
    ),
}
NORMALIZED = {"piqa", "arc_easy", "arc_challenge", "hellaswag"}


@dataclass(frozen=True)
class ZeroShot:
    """The tasks of a job. asked: the task of each request; requests: as tokens; limit: examples of each task."""

    tasks: dict[str, Task]
    limit: int | None
    asked: tuple[str, ...]
    requests: tuple[tuple[Tokens, Tokens], ...]
    prompts: Prompts

    def reports(self, dense: Sequence[Answer], compressed: Sequence[Answer]) -> dict[str, TaskReport]:
        """Judge both models by their answers to all requests."""
        both = [self._judged(answers) for answers in (dense, compressed)]
        return {name: self._report(name, *(judged[name] for judged in both)) for name in self.tasks}

    def _judged(self, answers: Sequence[Answer]) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = _evaluate(_Replaying(answers), self.tasks, self.limit)["samples"]
        return found

    def _report(self, name: str, dense: list[dict[str, Any]], compressed: list[dict[str, Any]]) -> TaskReport:
        accurate = [[float(sample["acc"]) for sample in samples] for samples in (dense, compressed)]
        normalized: list[Accuracy | None] = [None, None]
        if "acc_norm" in dense[0]:
            normalized = [mean([float(sample["acc_norm"]) for sample in samples]) for samples in (dense, compressed)]
        of_task = [request for request, task in zip(self.requests, self.asked, strict=True) if task == name]
        return TaskReport(
            num_examples=len(dense),
            dense=mean(accurate[0]),
            compressed=mean(accurate[1]),
            dense_normalized=normalized[0],
            compressed_normalized=normalized[1],
            drop=mean([before - after for before, after in zip(*accurate, strict=True)]),
            prompts_sha256=list_sha256(of_task),
        )


def read_zero_shot(evaluation: Evaluation, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> ZeroShot:
    """Read a job's tasks and all that they ask. Raises CalibrationError when a file or the hub cannot be read."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    directory = None if evaluation.task_files is None else Path(evaluation.task_files)
    tasks = {name: _of_files(name, directory) if directory else _of_hub(name) for name in evaluation.tasks}
    listening = _Listening(tokenizer)
    try:
        _evaluate(listening, tasks, evaluation.task_examples)
    except _AllHeardError as heard:
        asked, requests = heard.asked, heard.requests
    prompts = Prompts.of(requests, resolve_max_length(config, tokenizer))
    return ZeroShot(tasks, evaluation.task_examples, tuple(asked), tuple(requests), prompts)


def mean(values: Sequence[float]) -> Accuracy:
    """The mean of two values or more with its standard error, as lm-eval computes it."""
    return Accuracy(value=statistics.fmean(values), standard_error=statistics.stdev(values) / math.sqrt(len(values)))


def _evaluate(model: TemplateLM, tasks: dict[str, Task], limit: int | None) -> dict[str, Any]:
    found: dict[str, Any] = evaluate(model, {"tasks": tasks, "groups": {}}, limit=limit, bootstrap_iters=0)
    return found


def _of_hub(name: str) -> Task:
    try:
        task: Task = TaskManager().load([name])["tasks"][name]
    except Exception as error:  # of the hub, its cache and its libraries
        raise CalibrationError(f"{name}: its examples cannot be had from the hub: {error}") from error
    return task


def _of_files(name: str, directory: Path) -> Task:
    path = _file(name, directory)
    fields, definition = FILES[name]
    rows = datasets.Dataset.from_list(_rows(path, fields))
    metrics = ["acc", "acc_norm"] if name in NORMALIZED else ["acc"]
    metric_list = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": rows},
            "test_split": "test",
            "num_fewshot": 0,
            "metric_list": metric_list,
            **definition,
        }
    )


def _file(name: str, directory: Path) -> Path:
    found = sorted({*directory.glob(f"{name}.jsonl"), *directory.glob(f"{name}_*.jsonl")})
    if len(found) != 1:
        named = ", ".join(path.name for path in found) or "none"
        raise CalibrationError(f"{directory}: expected one file {name}.jsonl or {name}_*.jsonl, found {named}")
    return found[0]


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The fields that the task's prompt is made of, of every example."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({field: row[field] for field in fields})
        except (ValueError, KeyError, TypeError):
            raise CalibrationError(
                f"{path}: line {number}: expected a JSON object with {', '.join(fields)}, found {line[:80]!r}"
            ) from None
    if len(rows) < 2:
        raise CalibrationError(f"{path}: expected two examples or more, found {len(rows)}")
    return rows


class _AllHeardError(Exception):
    """All tasks have asked."""

    def __init__(self, asked: list[str], requests: list[tuple[Tokens, Tokens]]) -> None:
        super().__init__()
        self.asked, self.requests = asked, requests


class _OnlyScoring(TemplateLM):
    """What all models of ours have in common: they score, they do not write."""

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


class _Listening(_OnlyScoring):
    """Turns all requests into tokens as lm-eval's own transformers model does, and answers none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        end: int = self.tokenizer.eos_token_id
        return end

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            options = {"add_special_tokens": False}
        tokens: list[int] = self.tokenizer.encode(string, **options)
        return tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        self._asked = [str(request.task_name) for request in requests]
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[Answer]:
        pairs = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        raise _AllHeardError(self._asked, pairs)


class _Replaying(_OnlyScoring):
    """Gives the answers that were computed before."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._answers = answers

    @property
    def eot_token_id(self) -> int:
        raise NotImplementedError

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        raise NotImplementedError

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        return list(self._answers)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[Answer]:
        raise NotImplementedError
