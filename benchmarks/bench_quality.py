"""Perplexity of a real model at 3 bits: what a job gives, and what the method gives by its specification.

SmolLM2-135M, calibrated on WikiText-2's train text, measured on the first windows of its test text. Three numbers
a method: of the job's report, of the artifact as it loads, and of specification.py on the plain model.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import specification
import torch
from machine import RESULTS, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitpress.jobs import parse_spec
from bitpress.loading import load
from bitpress_workers.demo_model import write_demo_model
from bitpress_workers.local_run import run_local

REPOSITORY = Path(__file__).parents[1]
MODEL = REPOSITORY / ".demo" / "model"
TEXTS = Path(os.environ.get("BITPRESS_SHARED", REPOSITORY.parent / "shared")) / "data" / "wikitext2"
CALIBRATION = {"num_sequences": 16, "sequence_length": 512, "seed": 0}
EVALUATION = {"sequence_length": 512, "max_sequences": 24}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"kind": "rtn", "bits": 3},
    "spqr": {
        "kind": "spqr",
        "bits": 3,
        "group_size": 16,
        "scale_bits": 3,
        "zero_bits": 3,
        "statistics_group_size": 16,
        "outlier_threshold": 0.2,
        "damping": 1.0,
    },
    "septq": {"kind": "septq", "bits": 3, "retained_percent": 1.0, "damping": 0.01},
}


class Bench:
    """The model, the texts and the dense perplexity, shared by all methods."""

    def __init__(self) -> None:
        write_demo_model(MODEL)
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        train, test = ((TEXTS / f"wiki.{part}.txt").read_text() for part in ("train", "test"))
        self.sequences = specification.calibration_sequences(train, tokenizer, CALIBRATION)
        self.windows_KS = specification.windows(test, tokenizer, EVALUATION)
        self.threads = torch.get_num_threads()
        self.dense = specification.perplexity(_plain_model(), self.windows_KS)

    def job(self, method: dict[str, Any]) -> dict[str, float]:
        """Run a job; load what it leaves."""
        test = str(TEXTS / "wiki.test.txt")
        spec = parse_spec(
            {
                "model": {"uri": str(MODEL)},
                "method": method,
                "calibration": {"dataset": str(TEXTS / "wiki.train.txt"), **CALIBRATION},
                "evaluation": {"datasets": [test], **EVALUATION},
            }
        )
        with tempfile.TemporaryDirectory() as scratch:
            started = time.monotonic()
            report = run_local(spec, Path(scratch), lambda progress: None)
            seconds = time.monotonic() - started
            torch.set_num_threads(self.threads)  # a job's shards take one thread each
            loaded = specification.perplexity(load(scratch), self.windows_KS)
        return {
            "bits_per_weight": report.bits_per_weight,
            "dense": report.perplexity[test].dense,
            "job": report.perplexity[test].compressed,
            "loaded": loaded,
            "job_seconds": round(seconds, 1),
        }

    def reference(self, method: dict[str, Any]) -> dict[str, float]:
        """Compress the plain model by the specification."""
        started = time.monotonic()
        model = _plain_model()
        specification.compress(model, self.sequences, method)
        seconds = time.monotonic() - started
        perplexity = specification.perplexity(model, self.windows_KS)
        return {"specification": perplexity, "specification_seconds": round(seconds, 1)}


def _plain_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False)


def _table(numbers: dict[str, Any]) -> str:
    """The saved numbers as Markdown."""
    lines = [
        f"SmolLM2-135M at 3 bits, {CALIBRATION['num_sequences']} sequences of {CALIBRATION['sequence_length']} tokens "
        f"of WikiText-2 train; perplexity on the first {EVALUATION['max_sequences']} windows of its test text "
        f"(dense: {numbers['dense']:.3f}).",
        "",
        "| method | bits per weight | job | as loaded | by the specification | ratio | seconds of the job |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, row in numbers["methods"].items():
        measured = f"{row['job']:.3f} | {row['loaded']:.3f} | {row['specification']:.3f} | {row['ratio']:.4f}"
        lines.append(f"| {kind} | {row['bits_per_weight']:.3f} | {measured} | {row['job_seconds']:.0f} |")
    where = json.loads((RESULTS / "quality.json").read_text())["machine"]
    lines += ["", f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {where['date']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--skip-reference", action="store_true", help="print the jobs' numbers only; save nothing")
    arguments = parser.parse_args()
    bench = Bench()
    rows: dict[str, dict[str, float]] = {}
    for kind in arguments.methods:
        rows[kind] = bench.job(METHODS[kind])
        if not arguments.skip_reference:
            rows[kind] |= bench.reference(METHODS[kind])
            rows[kind]["ratio"] = rows[kind]["job"] / rows[kind]["specification"]
        print(kind, json.dumps(rows[kind]), flush=True)
    if arguments.skip_reference:
        return
    numbers = {"dense": bench.dense, "calibration": CALIBRATION, "evaluation": EVALUATION, "methods": rows}
    save("quality", numbers)
    (RESULTS / "quality.md").write_text(_table(numbers))


if __name__ == "__main__":
    main()
