"""The methods against their textbook form on one 1536 x 1536 linear: seconds on one core, and the ratio.

python benchmarks/bench_solver.py [columns]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import save
from torch import Tensor

from bitpress.methods import MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracles import textbook
from oracles.examples import random_linear

ROWS = 1536
CASES: list[tuple[MethodConfig, Callable[[Tensor, Tensor], object]]] = [
    (RTNConfig(bits=3), lambda w, h: textbook.rtn(w, 3, None, textbook.half_scale)),
    (SpQRConfig(), lambda w, h: textbook.spqr(w, h, textbook.SpQROptions(store=textbook.half))),
    (SEPTQConfig(bits=3), lambda w, h: textbook.septq(w, h, 3, 1.0, textbook.half)),
]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    columns = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    weight, hessian = random_linear(ROWS, columns, seed=0)
    results = {}
    for config, oracle in CASES:
        ours = seconds(lambda config=config: compress(weight, hessian, config), 3)
        theirs = seconds(lambda oracle=oracle: oracle(weight, hessian), 1)
        results[config.kind] = {
            "seconds": round(ours, 3),
            "textbook_seconds": round(theirs, 3),
            "ratio": round(theirs / ours, 1),
        }
    save("solver", {"shape": [ROWS, columns], **results})


if __name__ == "__main__":
    main()
