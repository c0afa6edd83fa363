"""What a device does in a second: measured once by a short product and a short column loop, and kept in a file."""

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from bitpress.methods import GPTQConfig
from bitpress.plans import Rates
from bitpress_workers.methods import compress
from bitpress_workers.pipeline.costs import loop_flops

GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
LOOP_ROWS = {"cpu": 4096, "cuda": 65536}
REPEATS = 3  # the best of them counts: others disturb a measurement, nothing helps it


def rates_of(kind: str, file: Path) -> Rates:
    """Return this host's rates for one device (a core is one), measured when `file` does not hold them yet."""
    name = torch.cuda.get_device_name() if kind == "cuda" else "cpu"
    key = f"{name}, torch {version('torch')}, bitpress {version('bitpress')}"
    known: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
    if key not in known:
        known[key] = probe(kind).model_dump()
        part = file.with_suffix(".part")
        part.write_text(json.dumps(known, indent=1))
        part.replace(file)
    return Rates.model_validate(known[key])


def probe(kind: str) -> Rates:
    """Measure; seconds on a CPU, the first time a kernel is compiled too."""
    if kind == "cpu":
        torch.set_num_threads(1)  # as in a shard
    return Rates(
        gemm_gflops=_gemm(kind, torch.float32),
        half_gemm_gflops=_gemm(kind, torch.bfloat16) if kind == "cuda" else None,
        loop_gflops=_loop(kind),
    )


def _gemm(kind: str, dtype: torch.dtype) -> float:
    side = GEMM_SIDE[kind]
    a, b = (torch.ones(side, side, device=kind, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(kind, lambda: torch.mm(a, b)) / 1e9


def _loop(kind: str) -> float:
    """GPTQ of a linear of one column block: no updates, next to no factor, packed as it will be stored."""
    config = GPTQConfig(bits=4)
    rows, columns = LOOP_ROWS[kind], config.column_block
    weight = torch.linspace(-1, 1, rows * columns, device=kind).view(rows, columns)
    hessian = torch.eye(columns, device=kind)
    _, elementwise = loop_flops(rows, columns, columns)
    return elementwise / _seconds(kind, lambda: compress(weight, hessian, config)) / 1e9


def _seconds(kind: str, work: Callable[[], object]) -> float:
    work()  # kernels are compiled, memory is taken
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
