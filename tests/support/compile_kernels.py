"""Compile every Triton kernel for compute capability 9.0, without a GPU, and look at the code.

python compile_kernels.py: prints a line for each variant; fails on a fused or approximated operation.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitpress_workers.numerics.grid import MAX_REAL_ZERO, SEARCH_NORM
from bitpress_workers.numerics.kernels import cuda_columns, cuda_leave_one_out, cuda_search, cuda_statistics

TARGET = GPUTarget("cuda", 90, 32)
INEXACT = re.compile(r"\b(?:fma|mad|div\.full|div\.approx|ex2|lg2|rcp)\.\S*f32")
POWER = re.compile(r"\b(?:ex2\.approx|fma\.rn)\.ftz\.f32")  # the search's, from Triton's exp2 and log2


def variants() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], int]]:
    """Kernels with their arguments' types, their constants, and warps."""
    for real_zero, has_groups, kept in itertools.product((False, True), (False, True), (None, "given", "found")):
        types = dict.fromkeys(("weights", "errors", "upper", "scales", "zeros"), "*fp32")
        types |= {"codes": "*u8", "dead": "*i1"} | dict.fromkeys(("first", "last", "num_columns", "num_rows"), "i32")
        constants = {"REAL_ZERO": real_zero, "MAX_CODE": 7, "KEPT_DTYPE": tl.float16, "TILE": 32, "UNROLL": 8}
        optional = {"groups": "*i64" if has_groups else None}
        optional |= {"kept": "*i1" if kept else None, "thresholds": "*fp32" if kept == "found" else None}
        types |= {name: kind for name, kind in optional.items() if kind}
        constants |= {name: None for name, kind in optional.items() if not kind}
        yield cuda_columns._solve_run, types, constants, cuda_columns.TILE // 32
    types = dict.fromkeys(("weights", "scales", "zeros"), "*fp32")
    types |= {"errors": "*fp64", "num_columns": "i32", "num_rows": "i32"}
    constants = {"MAX_CODE": 7, "POWER": SEARCH_NORM - 2, "CANDIDATES": 16, "TILE": 32, "CHUNK": 128}
    yield cuda_search._search_errors, types, constants, 4
    for symmetric_zero in (None, 4):
        types = dict.fromkeys(("weights", "pivots", "thresholds", "lows", "highs"), "*fp32")
        types |= {"group_size": "i32", "num_rows": "i32"}
        constants = {"MAX_CODE": 7, "SYMMETRIC_ZERO": symmetric_zero, "SMALLEST_SCALE": 2.0**-126}
        constants |= {"FARTHEST_ZERO": MAX_REAL_ZERO, "TILE": cuda_leave_one_out.TILE}
        yield cuda_leave_one_out._patched_range, types, constants, 4
    types = dict.fromkeys(("values", "decoded", "scales", "zeros"), "*fp32")
    types |= {"index": "*i64", "codes": "*u8", "num_tiles": "i32", "tile_size": "i32"}
    constants = {"MAX_CODE": 7, "STORED": tl.float16, "SMALLEST_SCALE": 2.0**-24, "FARTHEST_ZERO": MAX_REAL_ZERO}
    yield cuda_statistics._quantize_statistics, types, constants | {"TILES": cuda_statistics.TILES}, 1


def main() -> None:
    for kernel, types, constants, num_warps in variants():
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        options = {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=TARGET, options=options)
        ptx = compiled.asm["ptx"]
        inexact = set(INEXACT.findall(POWER.sub("", ptx) if kernel is cuda_search._search_errors else ptx))
        print(kernel.__name__, len(compiled.asm["cubin"]), "bytes", sorted(inexact))
        if inexact:
            raise SystemExit(f"{kernel.__name__}: inexact operations {sorted(inexact)}")


if __name__ == "__main__":
    main()
