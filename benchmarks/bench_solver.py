"""One 1536 x 1536 linear on one core: what solving it takes, and what a plain torch loop takes for the same codes.

Both get the same factor and must return the same codes (tests/oracles/plain_loop.py). Factors are timed beside:
ours, and the published one, which inverts the Hessian first.

python benchmarks/bench_solver.py [columns]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import save
from torch import Tensor

from bitpress.methods import GPTQConfig, MethodConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import create
from bitpress_workers.numerics.column_solver import Columns
from bitpress_workers.numerics.hessian import Factor, Gram

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracles import plain_loop, textbook
from oracles.examples import random_linear

ROWS = 1536
ROW_TILE = 128
REPEATS = 7


def plain_gptq(weight_RI: Tensor, factor: Factor) -> Tensor:
    return plain_loop.gptq(weight_RI, factor.upper_II, bits=3)


def plain_spqr(weight_RI: Tensor, factor: Factor) -> Tensor:
    assert factor.order_I is not None
    return plain_loop.spqr(weight_RI, factor.upper_II, factor.order_I, plain_loop.SpQR())


def plain_septq(weight_RI: Tensor, factor: Factor) -> Tensor:
    return plain_loop.septq(weight_RI, factor.upper_II, bits=3, retained_percent=1.0)


CASES: list[tuple[MethodConfig, Callable[[Tensor, Factor], Tensor]]] = [
    (GPTQConfig(bits=3), plain_gptq),
    (SpQRConfig(), plain_spqr),
    (SEPTQConfig(bits=3), plain_septq),
]


class Stopwatch:
    """The fastest of several runs of each phase, in seconds of this process's one thread: others may be running."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, phase: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        seconds = time.process_time() - start
        self.seconds[phase] = min(seconds, self.seconds.get(phase, seconds))
        return result


def solve(weight_RI: Tensor, hessian_II: Tensor, config: MethodConfig, watch: Stopwatch) -> tuple[Factor, Columns]:
    """Solve the linear phase by phase; return its factor and the solved columns."""
    method = create(config)
    factor = watch.run("factor", lambda: method.factor(Gram.of(hessian_II, num_sequences=2, num_tokens=0)))
    rows = watch.run("begin", lambda: method.begin([weight_RI], factor, method.row_tile(ROW_TILE)))
    agreed = None

    def survey() -> list[Any]:
        return [method.agree(rows.survey(agreed)[0], agreed and agreed[0])]

    for number in range(method.survey_rounds):
        agreed = watch.run(f"survey {number + 1}", survey)
    arguments = [agreed] if method.survey_rounds else []
    return factor, watch.run("columns", lambda: rows.solve_values(*arguments))


def measure(
    weight_RI: Tensor, hessian_II: Tensor, config: MethodConfig, plain: Callable[[Tensor, Factor], Tensor]
) -> dict[str, Any]:
    """Both solvers in turn, so that neither has the quieter machine."""
    watch, plain_watch = Stopwatch(), Stopwatch()
    for _ in range(REPEATS):
        factor, columns = solve(weight_RI, hessian_II, config, watch)
        codes_IR = plain_watch.run("solve", lambda factor=factor: plain(weight_RI, factor))
        assert torch.equal(columns.codes_IR, codes_IR), f"{config.kind}: other codes than the plain loop's"
    phases = watch.seconds
    seconds, plain_seconds = sum(phases.values()) - phases["factor"], plain_watch.seconds["solve"]
    return {
        "seconds": round(seconds, 4),
        "plain_seconds": round(plain_seconds, 4),
        "times_faster": round(plain_seconds / seconds, 2),
        "nanoseconds_per_weight": round(seconds / weight_RI.numel() * 1e9, 1),
        "phase_seconds": {phase: round(value, 4) for phase, value in phases.items()},
    }


def factors_and_floors(hessian_II: Tensor) -> dict[str, float]:
    """What factors cost as published, and what the GEMMs of a column loop cost without anything else."""
    watch = Stopwatch()
    damped_II = textbook.damp_gptq(hessian_II, 0.01)
    block = plain_loop.BLOCK
    errors_BR = torch.randn(block, ROWS)
    for _ in range(REPEATS):
        watch.run("plain_factor", lambda: textbook.upper_factor(damped_II))
        watch.run(
            "gemm_floor",
            lambda: [hessian_II[:block, last:].T @ errors_BR for last in range(block, len(hessian_II), block)],
        )
    return {f"{name}_seconds": round(value, 4) for name, value in watch.seconds.items()}


def first_call_seconds() -> dict[str, float]:
    """Import and first call of all kernels in a new process, compiling them, and finding them compiled."""
    work = (
        "import time\n"
        "import torch; from bitpress.methods import *; from bitpress_workers.methods import compress\n"
        "ready = time.perf_counter()\n"
        "for config in (SpQRConfig(), SEPTQConfig(bits=3)): compress(torch.randn(32, 32), torch.eye(32), config)\n"
        "print(time.perf_counter() - ready)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        compiling, loading = (
            float(subprocess.check_output([sys.executable, "-c", work], env=environment)) for _ in range(2)
        )
    return {"compiling": round(compiling, 2), "compiled": round(loading, 2)}


def main() -> None:
    torch.set_num_threads(1)
    columns = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    weight_RI, hessian_II = random_linear(ROWS, columns, seed=0)
    floors = factors_and_floors(hessian_II)
    results = {config.kind: measure(weight_RI, hessian_II, config, plain) for config, plain in CASES}
    for result in results.values():
        ours = result["seconds"] + result["phase_seconds"]["factor"]
        plain = result["plain_seconds"] + floors["plain_factor_seconds"]
        result["times_faster_with_factor"] = round(plain / ours, 2)
    save("solver", {"shape": [ROWS, columns], **results, **floors, "first_call_seconds": first_call_seconds()})


if __name__ == "__main__":
    main()
