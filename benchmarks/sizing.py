"""What jobs over models of four sizes need: GPU, host memory, disk, time, by the plan; nothing is run or measured.

python benchmarks/sizing.py

Writes results/sizing.json and the table in docs/operations.md. Times are those of `scale_model.py`: from rates of an
H200 that are stated, not measured, unless `bench_scale.py block --device cuda` has measured some.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import load_results, save
from scale_jobs import METHODS
from scale_model import GPU_BYTES, LINKS, plan_for, rates_of_a_gpu, times

from bitpress.errors import OutOfMemory
from bitpress.jobs import JobSpec, parse_spec
from bitpress.plans import PlanReport, Rates
from bitpress_workers.pipeline.plan import Devices

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from header_only import opt, write_headers

# arXiv 2205.01068, table 1: hidden size, blocks, heads.
SIZES = {"7B": (4096, 32, 32), "13B": (5120, 40, 40), "30B": (7168, 48, 56), "66B": (9216, 64, 72)}
KINDS = ("spqr", "septq")
GPU_GIB = (16, 24, 32, 40, 48, 80, 131)  # what GPUs come with
GPUS = (1, 4, 8)
PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
BEGIN, END = "<!-- sizing: benchmarks/sizing.py -->\n", "<!-- end of sizing -->\n"


def need(spec: JobSpec, rates: Rates) -> dict[str, Any]:
    """The smallest GPU that one job fits, what it needs beside it, and minutes on several large ones."""
    gpu_gib, smallest = smallest_gpu(spec, rates)
    large = {gpus: plan_for(spec, Devices("cuda", gpus, GPU_BYTES), gpus, rates) for gpus in GPUS}
    return {
        "smallest_gpu_gib": gpu_gib,
        "host_bytes": smallest.peak_host_bytes,
        "activations": smallest.activations,
        "checkpoint_bytes": smallest.checkpoint_bytes,
        "artifact_bytes": smallest.artifact_bytes,
        "minutes": {str(gpus): times(plan, large[1], LINKS["NVLink"])["minutes"] for gpus, plan in large.items()},
    }


def smallest_gpu(spec: JobSpec, rates: Rates) -> tuple[int, PlanReport]:
    for gib in GPU_GIB:
        try:
            return gib, plan_for(spec, Devices("cuda", 1, gib * 2**30), 1, rates)
        except OutOfMemory:
            continue
    raise OutOfMemory(f"{spec.model.uri} fits none of these GPUs")


def table(sizes: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| OPT | method, 3 bits | GPU, at least | host memory | checkpoint | artifact | minutes on 1 H200 | 4 | 8 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, of in sizes.items():
        size, kind = name.split()
        disk = [f"{of[key] / 1e9:.0f} GB" for key in ("checkpoint_bytes", "artifact_bytes")]
        minutes = [f"{of['minutes'][str(gpus)]:.1f}" for gpus in GPUS]
        host = f"{of['host_bytes'] / 2**30:.0f} GiB"
        cells = [size, kind, f"{of['smallest_gpu_gib']} GiB", host, *disk, *minutes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rates, source = rates_of_a_gpu(list(load_results("scale").get("block", {}).values()))
    sizes: dict[str, Any] = {}
    for size, shape in SIZES.items():
        with tempfile.TemporaryDirectory() as directory:
            model = write_headers(opt(*shape), Path(directory))
            for kind in KINDS:
                calibration = {"dataset": "c4"}  # 128 x 2,048 tokens
                spec = {"model": {"uri": str(model)}, "method": METHODS[kind], "calibration": calibration}
                sizes[f"{size} {kind}"] = need(parse_spec(spec), rates)
    save("sizing", {"rates_from": source, "sizes": sizes})
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table(sizes) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
