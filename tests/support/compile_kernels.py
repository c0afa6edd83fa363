"""Call every Triton kernel as it is called on a GPU, and compile it for compute capability 9.0 instead of launching it.

python compile_kernels.py: prints a line for each variant; fails on a fused or approximated operation.
"""

import itertools
import re
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitpress_workers.numerics.column_solver import Block
from bitpress_workers.numerics.grid import IntegerZeroGrid, RealZeroGrid
from bitpress_workers.numerics.kernels import cuda

TARGET = GPUTarget("cuda", 90, 32)
INEXACT = re.compile(r"\b(?:fma|mad|div\.full|div\.approx|ex2|lg2|rcp)\.\S*f32")
POWER = re.compile(r"\b(?:ex2\.approx|fma\.rn)\.ftz\.f32")  # the search's, from Triton's exp2 and log2
OPTIONS = ("num_warps", "num_ctas", "num_stages", "enable_fp_fusion")
COLUMNS, ROWS = 24, 48


def compile_instead(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:  # noqa: A002  the hook's argument
    """Compile what is about to be launched, look at its code, and say that there is nothing left to do."""
    source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
    code = triton.compile(source, target=TARGET, options={name: compile[name] for name in OPTIONS}).asm
    ptx = POWER.sub("", code["ptx"]) if fn.name == "_search_errors" else code["ptx"]
    inexact = set(INEXACT.findall(ptx))
    print(fn.name, len(code["cubin"]), "bytes", sorted(inexact))
    if inexact:
        raise SystemExit(f"{fn.name}: inexact operations {sorted(inexact)}")
    return True


def call_columns() -> None:
    scale_R = torch.ones(ROWS)
    for real_zero, has_groups, kept in itertools.product((False, True), (False, True), (None, "given", "found")):
        block = Block(
            weight_BR=torch.zeros(COLUMNS, ROWS),
            errors_BR=torch.zeros(COLUMNS, ROWS),
            upper_BB=torch.eye(COLUMNS),
            dead_B=torch.zeros(COLUMNS, dtype=torch.bool),
            codes_BR=torch.zeros(COLUMNS, ROWS, dtype=torch.uint8),
            group_B=torch.zeros(COLUMNS, dtype=torch.int64) if has_groups else None,
            threshold_R=scale_R if kept == "found" else None,
            kept_BR=torch.zeros(COLUMNS, ROWS, dtype=torch.bool) if kept else None,
            kept_dtype=torch.float16,
        )
        cuda.solve_run(block, 8, 16, (RealZeroGrid if real_zero else IntegerZeroGrid)(scale_R, scale_R, 3))


def call_fits() -> None:
    weight_KR, scale_R = torch.ones(COLUMNS, ROWS), torch.ones(ROWS)
    for symmetric in (False, True):
        cuda.search_integer_zero(weight_KR, 3, tiles=[ROWS], symmetric=symmetric, scale_dtype=torch.float16)
        cuda.patched_range(weight_KR, torch.ones(COLUMNS), 3, symmetric, scale_R)
    cuda.quantize_statistics(scale_R, torch.arange(ROWS).view(-1, 16), 3, scale_dtype=torch.float16)


def main() -> None:
    device = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: TARGET
    )
    triton.runtime.driver.set_active(device)
    triton.knobs.runtime.jit_cache_hook = compile_instead
    call_columns()
    call_fits()


if __name__ == "__main__":
    main()
