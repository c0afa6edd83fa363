"""Zero-shot accuracy: our streamed models against lm-eval's own model of the same checkpoint, task by task.

opt-mini of tests/data and what a job makes of it, on the first examples of each task's files in BITPRESS_SHARED. Ours:
the job's report. lm-eval's: its HFLM on the checkpoint as it came, and on the job's `dense` export, a plain
checkpoint again. Accuracies must be equal.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from machine import RESULTS, machine, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitpress.artifacts import Accuracy
from bitpress.jobs import Evaluation, parse_spec
from bitpress.tasks import KNOWN_TASKS
from bitpress_workers.local_run import run_local
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.pipeline.zero_shot import read_zero_shot

REPOSITORY = Path(__file__).parents[1]
MODEL = REPOSITORY / "tests" / "data" / "opt-mini"
SHARED = Path(os.environ.get("BITPRESS_SHARED", REPOSITORY.parent / "shared")) / "data"
METRICS = (("", "acc"), ("_normalized", "acc_norm"))


def by_lm_eval(checkpoint: Path, evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """What lm-eval says with its own model."""
    opened = Checkpoint.open(str(checkpoint))
    tasks = read_zero_shot(evaluation, opened.tokenizer(), opened.config).tasks
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    answering = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint), batch_size=8, device="cpu")
    limit = evaluation.task_examples
    found = evaluate(answering, {"tasks": tasks, "groups": {}}, limit=limit, bootstrap_iters=0)["results"]
    return {
        name: {metric: found[name][f"{metric},none"] for _, metric in METRICS if f"{metric},none" in found[name]}
        for name in tasks
    }


def measure(examples: int) -> dict[str, Any]:
    """Run a job with tasks; compare both of its models with lm-eval's."""
    evaluation = {"tasks": KNOWN_TASKS, "task_files": str(SHARED / "zeroshot"), "task_examples": examples}
    spec = parse_spec(
        {
            "model": {"uri": str(MODEL)},
            "method": {"kind": "gptq", "bits": 3},
            "calibration": {
                "dataset": str(SHARED / "wikitext2" / "wiki.train.txt"),
                "num_sequences": 64,
                "sequence_length": 256,
            },
            "evaluation": evaluation,
            "exports": ["dense"],
            "devices": 1,
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        started = time.monotonic()
        report = run_local(spec, Path(directory), lambda progress: None)
        seconds = time.monotonic() - started
        whole = {
            "dense": by_lm_eval(MODEL, spec.evaluation),
            "compressed": by_lm_eval(Path(directory) / "exports" / "dense", spec.evaluation),
        }
    rows: dict[str, Any] = {}
    for name, task in report.tasks.items():
        rows[name] = {}
        for which, results in whole.items():
            for suffix, metric in METRICS:
                found: Accuracy | None = getattr(task, which + suffix)
                if found is not None:
                    theirs = results[name][metric]
                    assert abs(found.value - theirs) < 1e-9, (
                        f"{name}, {which}: {metric} {found.value}, lm-eval {theirs}"
                    )
                    rows[name][f"{which} {metric}"] = {
                        "ours": found.value, "error": found.standard_error, "lm_eval": theirs,
                    }  # fmt: skip
    return {"examples": examples, "job_seconds": round(seconds, 1), "tasks": rows}


def table(numbers: dict[str, Any]) -> str:
    """The accuracies as Markdown."""
    lines = [
        f"opt-mini, GPTQ 3, the first {numbers['examples']} examples of each task: accuracy by the streamed models, "
        "with its standard error, and by lm-eval's own model of the checkpoint and of the dense export. All are equal.",
        "",
        "| task | dense | lm-eval | compressed | lm-eval |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in numbers["tasks"].items():
        cells = [
            f"{row[which]['ours']:.4f} ± {row[which]['error']:.4f} | {row[which]['lm_eval']:.4f}"
            for which in ("dense acc", "compressed acc")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    where = machine()
    lines += ["", f"{where['processor']}, one core, Python {where['python']}, {where['date']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    numbers = measure(parser.parse_args().examples)
    save("tasks", numbers)
    (RESULTS / "tasks.md").write_text(table(numbers))


if __name__ == "__main__":
    main()
