"""Every method at 2, 3 and 4 bits on a real model: perplexity against the bits a weight takes, as table and figure.

SmolLM2-135M, calibrated on WikiText-2's train text, measured on the first windows of its test text, all members of
one sweep. Each perplexity comes from the streamed evaluation and must equal that of the whole model, opened with
transformers. An interrupted run goes on; `--again` starts over.
"""

import argparse
import json
import shutil
from typing import Any

import specification
import torch
from bench_quality import CALIBRATION, EVALUATION, MODEL, REPOSITORY, TEXTS
from machine import RESULTS, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitpress.artifacts import REPORT, Report
from bitpress.loading import load
from bitpress.plots import Point, scatter, standalone
from bitpress.sweeps import SweepSpec
from bitpress_workers.demo_model import write_demo_model
from bitpress_workers.local_run import run_sweep

DIRECTORY = REPOSITORY / ".demo" / "pareto"
TEST = str(TEXTS / "wiki.test.txt")
TOLERANCE = 1e-4  # of streamed against whole perplexity, relative
METHODS: dict[str, dict[str, Any]] = {
    **{f"RTN {bits}": {"kind": "rtn", "bits": bits} for bits in (2, 3, 4)},
    **{f"GPTQ {bits}": {"kind": "gptq", "bits": bits} for bits in (2, 3, 4)},
    **{f"SEPTQ {bits}": {"kind": "septq", "bits": bits} for bits in (2, 3, 4)},
    **{f"SpQR {bits}": {"kind": "spqr", "bits": bits} for bits in (2, 3, 4)},
    "SpQR 2, no outliers": {"kind": "spqr", "bits": 2, "outlier_threshold": None},
}

Row = dict[str, float]


def sweep() -> SweepSpec:
    """All methods, on one core."""
    return SweepSpec.model_validate(
        {
            "model": {"uri": str(MODEL)},
            "method": list(METHODS.values()),
            "calibration": {"dataset": str(TEXTS / "wiki.train.txt"), **CALIBRATION},
            "evaluation": {"datasets": [TEST], **EVALUATION},
            "devices": 1,
        }
    )


def measure(name: str, member: str, windows_KS: torch.Tensor) -> Row:
    """What a member's report says. Raises ValueError when the whole model says otherwise."""
    report = Report.model_validate_json((DIRECTORY / member / REPORT).read_text())
    found = report.perplexity[TEST]
    whole = specification.perplexity(load(DIRECTORY / member), windows_KS)
    require_equal(name, found.compressed, whole)
    assert found.compressed_interval is not None
    return {
        "bits_per_weight": report.bits_per_weight,
        "perplexity": found.compressed,
        "low": found.compressed_interval.low,
        "high": found.compressed_interval.high,
        "kl": report.divergence[TEST].kl,
        "agreement": report.divergence[TEST].agreement,
        "whole_model": whole,
    }


def require_equal(name: str, streamed: float, whole: float) -> None:
    """Raises ValueError when the two perplexities differ by more than the tolerance."""
    if not abs(streamed / whole - 1) <= TOLERANCE:
        raise ValueError(f"{name}: perplexity {streamed} streamed, {whole} of the whole model")


def front(rows: dict[str, Row]) -> list[str]:
    """The methods that no other beats in both bits and perplexity, by rising bits."""
    found: list[str] = []
    for name, row in sorted(rows.items(), key=lambda item: item[1]["bits_per_weight"]):
        if not found or row["perplexity"] < rows[found[-1]]["perplexity"]:
            found.append(name)
    return found


def table(rows: dict[str, Row], dense: float, where: dict[str, str]) -> str:
    """The numbers as Markdown, by rising bits."""
    best = front(rows)
    lines = [
        f"SmolLM2-135M, {CALIBRATION['num_sequences']} sequences of {CALIBRATION['sequence_length']} tokens of "
        f"WikiText-2 train; the first {EVALUATION['max_sequences']} windows of {EVALUATION['sequence_length']} tokens "
        "of its test text. Bits count all that is stored. Every perplexity is the streamed one; the whole model's is "
        f"the same to {TOLERANCE:g}. In bold: no other is smaller and better.",
        "",
        "| method | bits per weight | perplexity | 95 % interval | KL divergence | same top token |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| dense | 16 | {dense:.3f} | | | |",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["bits_per_weight"]):
        shown = f"**{name}**" if name in best else name
        lines.append(
            f"| {shown} | {row['bits_per_weight']:.3f} | {row['perplexity']:.3f} | {row['low']:.2f} to "
            f"{row['high']:.2f} | {row['kl']:.4f} | {row['agreement']:.1%} |"
        )
    lines += ["", f"{where['processor']}, one core, Python {where['python']}, {where['date']}."]
    return "\n".join(lines) + "\n"


def figure(rows: dict[str, Row]) -> str:
    """Perplexity against bits, with the front of those that nothing beats."""
    points = {
        name: Point(row["bits_per_weight"], row["perplexity"], (row["low"], row["high"]), name, name)
        for name, row in rows.items()
    }
    line = [points[name] for name in front(rows)]
    what = "SmolLM2-135M: perplexity on WikiText-2 against bits per weight"
    return standalone(scatter(list(points.values()), "bits per weight", what, line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has left")
    if parser.parse_args().again:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    write_demo_model(MODEL)
    spec = sweep()
    comparison = run_sweep(spec, DIRECTORY, lambda name, progress: None)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    windows_KS = specification.windows((TEXTS / "wiki.test.txt").read_text(), tokenizer, EVALUATION)
    plain = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False)
    dense = specification.perplexity(plain, windows_KS)
    require_equal("dense", comparison.dense[TEST], dense)
    rows = {name: measure(name, member, windows_KS) for name, member in zip(METHODS, spec.names(), strict=True)}
    save("pareto", {"dense": dense, "calibration": CALIBRATION, "evaluation": EVALUATION, "methods": rows})
    where = json.loads((RESULTS / "pareto.json").read_text())["machine"]
    (RESULTS / "pareto.md").write_text(table(rows, dense, where))
    (RESULTS / "pareto.svg").write_text(figure(rows))


if __name__ == "__main__":
    main()
