"""Which machine a number was measured on, and where results are kept."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """Processor, cores, interpreter and date."""
    names = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "processor": ", ".join(sorted(names)),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def save_part(name: str, part: str, numbers: dict[str, dict[str, Any]]) -> None:
    """Put numbers, with machine and date, beside those that a part of results/<name>.json has already."""
    results = load_results(name)
    results[part] = results.get(part, {}) | {key: {"machine": machine()} | of for key, of in numbers.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def load_results(name: str) -> dict[str, Any]:
    """What results/<name>.json holds; nothing when it is not there."""
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def save(name: str, numbers: dict[str, Any]) -> None:
    """Write results/<name>.json and print it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **numbers}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
