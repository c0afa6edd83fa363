"""The kernels of NVIDIA devices, in Triton; imported when such a device is first used."""

from bitpress_workers.numerics.kernels.cuda_columns import solve_run
from bitpress_workers.numerics.kernels.cuda_leave_one_out import patched_range
from bitpress_workers.numerics.kernels.cuda_search import search_integer_zero
from bitpress_workers.numerics.kernels.cuda_statistics import quantize_statistics

__all__ = ["patched_range", "quantize_statistics", "search_integer_zero", "solve_run"]
