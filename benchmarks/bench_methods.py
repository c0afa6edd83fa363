"""Every method on real models: perplexity of the dense and the compressed model, with the bits a weight takes.

SmolLM2-135M and the small trained OPT and BLOOM of tests/data, calibrated on WikiText-2's train text, measured
on the first windows of its test text. `python benchmarks/bench_methods.py [--models ...] [--methods ...]`
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, save

from bitpress.jobs import parse_spec
from bitpress_workers.demo_model import write_demo_model
from bitpress_workers.local_run import run_local

REPOSITORY = Path(__file__).parents[1]
DEMO_MODEL = REPOSITORY / ".demo" / "model"
TEXTS = Path(os.environ.get("BITPRESS_SHARED", REPOSITORY.parent / "shared")) / "data" / "wikitext2"
MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"path": DEMO_MODEL, "sequences": 16, "length": 512, "windows": 24},
    "opt-mini": {"path": REPOSITORY / "tests" / "data" / "opt-mini", "sequences": 64, "length": 256, "windows": 64},
    "bloom-mini": {"path": REPOSITORY / "tests" / "data" / "bloom-mini", "sequences": 64, "length": 256, "windows": 64},
}
METHODS: dict[str, dict[str, Any]] = {
    "RTN 3": {"kind": "rtn", "bits": 3},
    "GPTQ 3": {"kind": "gptq", "bits": 3},
    "GPTQ 3, activation order": {"kind": "gptq", "bits": 3, "order": "activation"},
    "GPTQ 3, groups of 128": {"kind": "gptq", "bits": 3, "group_size": 128},
    "SEPTQ 3, 1 %": {"kind": "septq", "bits": 3},
    "SpQR 3, no outliers": {"kind": "spqr", "bits": 3, "outlier_threshold": None},
    "SpQR 3, threshold 0.2": {"kind": "spqr", "bits": 3},
    "RTN 2": {"kind": "rtn", "bits": 2},
    "GPTQ 2": {"kind": "gptq", "bits": 2},
    "SEPTQ 2, 1 %": {"kind": "septq", "bits": 2},
    "SpQR 2, threshold 0.2": {"kind": "spqr", "bits": 2},
    "PTQ1.61, 5 epochs": {"kind": "ptq161", "epochs": 5},
}


def run(model: dict[str, Any], method: dict[str, Any], strategy: str = "exact") -> dict[str, float]:
    """Run one job; return what its report says."""
    test = str(TEXTS / "wiki.test.txt")
    spec = parse_spec(
        {
            "model": {"uri": str(model["path"])},
            "method": method,
            "strategy": strategy,
            "calibration": {
                "dataset": str(TEXTS / "wiki.train.txt"),
                "num_sequences": model["sequences"],
                "sequence_length": model["length"],
            },
            "evaluation": {
                "datasets": [test],
                "sequence_length": model["length"],
                "max_sequences": model["windows"],
            },
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        report = run_local(spec, Path(scratch), lambda progress: None)
        seconds = time.monotonic() - started
    return {
        "bits_per_weight": report.bits_per_weight,
        "dense": report.perplexity[test].dense,
        "perplexity": report.perplexity[test].compressed,
        "seconds": round(seconds, 1),
    }


def _table(numbers: dict[str, dict[str, dict[str, float]]]) -> str:
    """The numbers as Markdown, one row for each method."""
    models = list(numbers)
    lines = [
        "Perplexity on WikiText-2 test (lower is better), in brackets the bits a weight takes, all stored "
        "statistics and indices counted.",
        "",
        "| method | " + " | ".join(models) + " |",
        "| --- |" + " ---: |" * len(models),
        "| dense | "
        + " | ".join(f"{next(iter(numbers[model].values()))['dense']:.2f} (16)" for model in models)
        + " |",
    ]
    for method in METHODS:
        rows = [numbers[model].get(method) for model in models]
        if any(rows):
            cells = [f"{row['perplexity']:.2f} ({row['bits_per_weight']:.2f})" if row else "" for row in rows]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    where = json.loads((RESULTS / "methods.json").read_text())["machine"]
    lines += ["", f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {where['date']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--again", action="store_true", help="measure anew what results/methods.json has already")
    arguments = parser.parse_args()
    numbers: dict[str, dict[str, dict[str, float]]] = {} if arguments.again else _measured()
    for name in arguments.models:
        if name == "SmolLM2-135M":
            write_demo_model(DEMO_MODEL)
        for method in arguments.methods:
            if method not in numbers.setdefault(name, {}):
                numbers[name][method] = run(MODELS[name], METHODS[method])
                save("methods", {"models": {name: _setting(MODELS[name]) for name in numbers}, "results": numbers})
                (RESULTS / "methods.md").write_text(_table(numbers))


def _measured() -> dict[str, dict[str, dict[str, float]]]:
    path = RESULTS / "methods.json"
    results: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text())["results"] if path.exists() else {}
    return results


def _setting(model: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in model.items() if isinstance(value, int)}


if __name__ == "__main__":
    main()
