"""Part `block`: one block of a 66B model through a whole job, in a process of its own, phase by phase.

A checkpoint of one block of random weights with a vocabulary of bytes is written, and a job of one shard runs
over it. On a CPU with few tokens; on a GPU with 128 sequences of 2,048, and from that follows the whole model's time.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import random_models
import torch
from scale_jobs import METHODS, load, make_spec, run_fresh

from bitpress.jobs import JobSpec
from bitpress.plans import Rates
from bitpress_workers.methods import create
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.numerics.hessian import Gram
from bitpress_workers.pipeline import outlook, row_solving
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.fleet import local_devices, make_local_fleet
from bitpress_workers.pipeline.memory import peak_resident_bytes
from bitpress_workers.pipeline.rates import probe
from bitpress_workers.pipeline.row_solving import RowSolving
from bitpress_workers.pipeline.shard import Shard
from bitpress_workers.pipeline.sizes import ModelSizes, model_sizes

# Published shapes: OPT, arXiv 2205.01068, table 1; LLaMA, arXiv 2302.13971, table 2.
SHAPES: dict[str, tuple[Callable[..., Any], int, int, str, int]] = {
    "opt-66b": (random_models.opt, 9216, 36864, "septq", 64),
    "llama-65b": (random_models.llama, 8192, 22016, "spqr", 80),
}
HEAD_SIZE = 128
TOKENS = {"cpu": (8, 64), "cuda": (128, 2048)}
PHASES: dict[str, list[tuple[Any, str]]] = {
    "reading": [(Shard, "load"), (Shard, "fingerprint")],
    "forward": [(Activations, "forward")],
    "hessian": [(Gram, "accumulate")],
    "factor": [(row_solving, "factorized")],
    "solve": [(RowSolving, "_solve_rows"), (row_solving, "concatenate")],
    "evidence": [(row_solving, "tile_errors")],
    "installing": [(Shard, "_install")],
    "publishing": [(Shard, "publish")],
}


class Stopwatch:
    """Seconds of each phase; one within another counts for the inner one alone."""

    def __init__(self, kind: str) -> None:
        self.seconds: dict[str, float] = {}
        self._kind, self._running, self._since = kind, ["other"], time.perf_counter()

    def watch(self, phase: str, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._running.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._running.pop()

        setattr(owner, name, timed)

    def _turn(self) -> None:
        if self._kind == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        phase = self._running[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


def measure(scratch: Path, shape: str, shrink: int, device: str) -> dict[str, Any]:
    """Measure in a new process, so that its memory is the job's."""
    family, hidden, ffn, _, _ = SHAPES[shape]
    model = scratch / "model"
    random_models.write_random_model(model, family(1, hidden // shrink, ffn // shrink, head_size=HEAD_SIZE))
    command = [sys.executable, __file__, str(scratch), shape, device]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {"hidden": hidden // shrink, "ffn": ffn // shrink, **found}


def measure_here(scratch: Path, shape: str, device: str) -> dict[str, Any]:
    _, _, _, kind, num_blocks = SHAPES[shape]
    sequences, length = TOKENS[device]
    spec = make_spec(scratch / "model", METHODS[kind], sequences=sequences, length=length, shards=1)
    watch = Stopwatch(device)
    for phase, functions in PHASES.items():
        for owner, name in functions:
            watch.watch(phase, owner, name)
    devices = local_devices()
    assert devices.kind == device, f"there is no {device} device here"
    started = time.perf_counter()
    report = run_fresh(spec, scratch / "job", make_local_fleet, devices)
    wall = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes()
    rates = probe(device)  # type: ignore[arg-type]
    planned = outlook.outlook(spec, devices, rates, "probe")
    planned_bytes = planned.peak_device_bytes or planned.peak_host_bytes
    checkpoint = Checkpoint.open(spec.model.uri)
    sizes = model_sizes(Outline(checkpoint), checkpoint)
    passes = 1 if create(spec.method).propagation == "block" else len(sizes.blocks[0].stages)
    seconds = {phase: watch.seconds.get(phase, 0.0) for phase in PHASES}
    block = sum(seconds.values()) + seconds["forward"] / passes  # one more to pass on to the next block
    return {
        "method": kind,
        "device": torch.cuda.get_device_name() if device == "cuda" else "one core",
        "tokens": sequences * length,
        "job_seconds": round(wall, 1),
        "block_seconds": round(report.phases["calibrating"], 1),
        "phase_seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "share_of_gemm": _shares(spec, sizes, passes, seconds, rates, device),
        "rates": rates.model_dump(),
        "planned_seconds": {
            phase: round(cost.seconds, 2) for phase, cost in planned.phases.items() if cost.seconds is not None
        },
        "peak_bytes": peak,
        "planned_bytes": planned_bytes,
        "planned_moment": planned.peak_moment,
        "planned_to_measured": round(planned_bytes / peak, 3),
        "whole_model_minutes": round(num_blocks * block / 60, 1),
        "load": load(),
    }


def table(name: str, found: dict[str, Any]) -> str:
    """Seconds of each phase, planned and measured, and its share of the rate of GEMMs."""
    lines = [
        f"{name}: {found['method']}, {found['tokens']} tokens, peak {found['peak_bytes'] / 1e9:.2f} GB,"
        f" planned {found['planned_to_measured']} of it; whole model: {found['whole_model_minutes']} minutes",
        "| phase | seconds | planned | share of GEMM |",
        "| --- | ---: | ---: | ---: |",
    ]
    for phase, seconds in found["phase_seconds"].items():
        planned, share = found["planned_seconds"].get(phase, ""), found["share_of_gemm"].get(phase, "")
        lines.append(f"| {phase} | {seconds} | {planned} | {share} |")
    return "\n".join(lines)


def _shares(
    spec: JobSpec, sizes: ModelSizes, passes: int, seconds: dict[str, float], rates: Rates, device: str
) -> dict[str, float]:
    """Operations in matrix products a second, over the measured rate of GEMMs of the phase's type."""
    cost, shares = outlook.job_cost(spec, sizes, 0, device, 1), {}
    for phase in ("forward", "hessian", "factor", "solve", "evidence"):
        half = rates.half_gemm_gflops if phase in ("forward", "hessian") else None
        # The plan counts passing on; the only block of this model is its last, whose output nobody needs.
        done = cost.products[phase] * (passes / (passes + 1) if phase == "forward" else 1)
        shares[phase] = round(done / seconds[phase] / 1e9 / (half or rates.gemm_gflops), 3)
    return shares


if __name__ == "__main__":
    scratch, shape, device = sys.argv[1:]
    print(json.dumps(measure_here(Path(scratch), shape, device)))
