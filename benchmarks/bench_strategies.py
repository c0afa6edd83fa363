"""What the independent strategy costs in quality: the same jobs, exact and independent.

Models, texts and settings are those of bench_methods.py.
`python benchmarks/bench_strategies.py [--models ...] [--methods ...]`
"""

import argparse
import json
from typing import Any

import bench_methods
from bench_methods import DEMO_MODEL, MODELS, run
from machine import RESULTS, save

from bitpress_workers.demo_model import write_demo_model

METHODS: dict[str, dict[str, Any]] = {
    "GPTQ 3": {"kind": "gptq", "bits": 3},
    "SpQR 3, threshold 0.2": {"kind": "spqr", "bits": 3},
    "GPTQ 2": {"kind": "gptq", "bits": 2},
    "SpQR 2, no outliers": {"kind": "spqr", "bits": 2, "outlier_threshold": None},
}
STRATEGIES = ("exact", "independent")

Numbers = dict[str, dict[str, dict[str, dict[str, float]]]]  # by model, method and strategy


def _table(numbers: Numbers, machine: dict[str, Any]) -> str:
    lines = [
        "Perplexity on WikiText-2 test (lower is better): exact / independent.",
        "",
        "| method | " + " | ".join(numbers) + " |",
        "| --- |" + " ---: |" * len(numbers),
    ]
    for method in METHODS:
        pairs = [numbers[model].get(method, {}) for model in numbers]
        cells = [" / ".join(f"{pair[name]['perplexity']:.2f}" for name in STRATEGIES if name in pair) for pair in pairs]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {machine['date']}."]
    return "\n".join(lines) + "\n"


def _measured(model: str, method: str) -> dict[str, float] | None:
    """The very same job, when bench_methods.py has measured it: equal jobs have equal bytes."""
    if METHODS[method] != bench_methods.METHODS.get(method):
        return None
    results = json.loads((RESULTS / "methods.json").read_text())["results"]
    return results.get(model, {}).get(method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--again", action="store_true", help="measure anew what results/strategies.json has already")
    arguments = parser.parse_args()
    path = RESULTS / "strategies.json"
    numbers: Numbers = json.loads(path.read_text())["results"] if path.exists() and not arguments.again else {}
    for model in arguments.models:
        if model == "SmolLM2-135M":
            write_demo_model(DEMO_MODEL)
        for method in arguments.methods:
            found = numbers.setdefault(model, {}).setdefault(method, {})
            for strategy in STRATEGIES:
                if strategy not in found:
                    known = _measured(model, method) if strategy == "exact" and not arguments.again else None
                    found[strategy] = known or run(MODELS[model], METHODS[method], strategy)
                    save("strategies", {"results": numbers})
            (RESULTS / "strategies.md").write_text(_table(numbers, json.loads(path.read_text())["machine"]))


if __name__ == "__main__":
    main()
