"""What runs on one NVIDIA GPU, against what that GPU can do, both measured here.

python benchmarks/bench_gpu.py [size [wide]]: rows and columns of the linear solved, columns of the widest input.

* solving: microseconds a column, all included that is done between two columns (fits of groups, launches,
  GEMMs) and after the last one (packing); the grid search: seconds
* a Hessian: its share of the rate of a plain 16-bit GEMM, counted as the 2 n^2 T operations of the whole product
* the factor: seconds, and memory beyond the Hessian in units of its own size
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import save
from torch import Tensor

from bitpress.methods import GPTQConfig, MethodConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import create
from bitpress_workers.numerics import kernels
from bitpress_workers.numerics.hessian import Gram, factorize

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracles.sharding import agree

TOKENS = 2048  # of a micro-batch
SQUARE = 8192  # the GEMM that is the measure
ROW_TILE = 1024  # as on an accelerator
METHODS: dict[str, MethodConfig] = {
    "gptq": GPTQConfig(bits=3),
    "gptq, groups of 128": GPTQConfig(bits=3, group_size=128),
    "spqr": SpQRConfig(),
    "septq": SEPTQConfig(bits=3),
}


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of some runs, from the first launch to the last result; one more run compiles the kernels."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)


def gemm_rate() -> float:
    """Operations a second of a bfloat16 GEMM on random data."""
    a, b = normal(SQUARE, SQUARE, dtype=torch.bfloat16), normal(SQUARE, SQUARE, dtype=torch.bfloat16)
    return 2 * SQUARE**3 / seconds(lambda: [a @ b for _ in range(10)]) * 10


def hessian_rate(columns: int) -> float:
    """Operations a second of the whole product, though only half of them are done."""
    gram, x_TI = Gram.zeros(columns, "cuda"), normal(TOKENS, columns, dtype=torch.bfloat16)
    return 2 * columns**2 * TOKENS / seconds(lambda: [gram.accumulate(x_TI, 1) for _ in range(5)]) * 5


def example_gram(columns: int) -> Gram:
    gram = Gram.zeros(columns, "cuda")
    for _ in range(2):
        gram.accumulate(normal(TOKENS, columns, dtype=torch.bfloat16), 1)
    return gram


def factor_costs(columns: int) -> dict[str, float]:
    gram = example_gram(columns)
    fastest = seconds(lambda: factorize(gram, damping=0.01, order="activation"), repeats=1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    factorize(gram, damping=0.01, order="activation")
    extra = (torch.cuda.max_memory_allocated() - before) / gram.xtx_II.nbytes
    return {"seconds": round(fastest, 3), "extra_matrices": round(extra, 2)}


def solving_costs(size: int) -> dict[str, Any]:
    """Of one square linear: microseconds a column of each method, and seconds of a grid search."""
    weight, gram = normal(size, size) * 0.02, example_gram(size)
    weight_KR = weight.T.contiguous()
    return {
        "shape": [size, size],
        "microseconds_a_column": {
            name: round(solve_seconds(config, weight, gram) / size * 1e6, 2) for name, config in METHODS.items()
        },
        "search_seconds": round(seconds(lambda: kernels.search_integer_zero(weight_KR, 3, tiles=[size])), 4),
    }


def solve_seconds(config: MethodConfig, weight: Tensor, gram: Gram) -> float:
    """What is left to do once the rows' surveys were agreed on: the column loop, and packing its result."""
    method = create(config)
    factor = method.factor(gram)
    times = []
    for _ in range(3):
        rows = method.begin([weight], factor, ROW_TILE)
        agreed = agree(method, [rows])
        torch.cuda.synchronize()
        start = time.perf_counter()
        rows.solve(agreed)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    if not torch.cuda.is_available():
        print("bench_gpu.py measures an NVIDIA GPU, and there is none here: nothing was measured")
        return
    size, wide = (int(value) for value in [*sys.argv[1:], *("9216", "36864")[len(sys.argv) - 1 :]])
    rate = gemm_rate()
    numbers: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "gemm_tflops": round(rate / 1e12, 1),
        **solving_costs(size),
    }
    for columns in (size, wide):
        found = hessian_rate(columns)
        numbers[f"hessian_{columns}"] = {"tflops": round(found / 1e12, 1), "share_of_gemm": round(found / rate, 3)}
        numbers[f"factor_{columns}"] = factor_costs(columns)
    save("gpu", numbers)


if __name__ == "__main__":
    main()
