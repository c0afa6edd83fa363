"""The column methods as one writes them from the specification in plain torch: float32, all rows at once.

What the kernels are timed against, and must agree with to the last code. `textbook` spells every step out and
is slow; nothing here is slower than it has to be without a compiler: columns are contiguous, their errors
reach the rest of a block in one step and all later columns by one GEMM, and no Python loop runs over rows.

Scales, zeros of the second level and kept weights are rounded to float16 before use.
Shapes: R rows, I columns in solve order, B columns of a block, g columns of a group, S rows that share statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.textbook import GridA, GridB, half, half_scale

BLOCK = 128

Quantize = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def solve(weight_IR: Tensor, upper_II: Tensor, quantize: Quantize) -> Tensor:
    """Replace one column after the other by its values; return the codes, uint8 [I, R].

    quantize: from a column's index and weights [R] to its codes and values.
    """
    codes_IR = torch.empty_like(weight_IR, dtype=torch.uint8)
    for first in range(0, len(weight_IR), BLOCK):
        last = min(first + BLOCK, len(weight_IR))
        errors_BR = torch.empty_like(weight_IR[first:last])
        for j in range(first, last):
            codes_IR[j], values_R = quantize(j, weight_IR[j])
            error_R = (weight_IR[j] - values_R) / upper_II[j, j]
            weight_IR[j] = values_R
            weight_IR[j + 1 : last] -= torch.outer(upper_II[j, j + 1 : last], error_R)
            errors_BR[j - first] = error_R
        weight_IR[last:] -= upper_II[first:last, last:].T @ errors_BR
    return codes_IR


def gptq(weight_RI: Tensor, upper_II: Tensor, bits: int) -> Tensor:
    """One grid for each row."""
    grid = GridA(weight_RI, bits, half_scale)

    def quantize(j: int, weight_R: Tensor) -> tuple[Tensor, Tensor]:
        codes_R = grid.codes(weight_R)
        return codes_R, grid.values(codes_R)

    return solve(weight_RI.T.contiguous(), upper_II, quantize)


def septq(weight_RI: Tensor, upper_II: Tensor, bits: int, retained_percent: float) -> Tensor:
    """One grid for each row, found by search, and a mask of kept weights, found by sorting."""
    grid = _search(weight_RI, bits)
    weight_IR = weight_RI.T.contiguous()
    importance_IR = (grid.values(grid.codes(weight_IR)) - weight_IR) ** 2 / upper_II.diagonal()[:, None] ** 2
    ranked = importance_IR.flatten().sort(descending=True).values
    kept_IR = importance_IR >= ranked[int(len(ranked) * retained_percent / 100)]

    def quantize(j: int, weight_R: Tensor) -> tuple[Tensor, Tensor]:
        codes_R = torch.where(kept_IR[j], grid.zero, grid.codes(weight_R))
        return codes_R, torch.where(kept_IR[j], half(weight_R), grid.values(codes_R))

    return solve(weight_IR, upper_II, quantize)


def _search(weight_RI: Tensor, bits: int) -> GridA:
    """80 shrunk ranges, each by some passes over all weights."""
    best = GridA(weight_RI, bits, half_scale)
    lo, hi, top = weight_RI.amin(dim=1).clamp(max=0), weight_RI.amax(dim=1).clamp(min=0), best.top
    least_R = torch.full_like(lo, torch.inf)
    for step in range(80):
        shrink = 1 - step / 100
        scale_R = half_scale((shrink * hi - shrink * lo) / top)
        zero_R = torch.round(-(shrink * lo) / scale_R).clamp(0, top)
        scale_R1, zero_R1 = scale_R[:, None], zero_R[:, None]
        codes_RI = (torch.round(weight_RI / scale_R1) + zero_R1).clamp(0, top)
        error_R = (scale_R1 * (codes_RI - zero_R1) - weight_RI).abs().pow(2.4).sum(dim=1)
        better_R = error_R < least_R
        least_R = torch.where(better_R, error_R, least_R)
        best.scale, best.zero = torch.where(better_R, scale_R, best.scale), torch.where(better_R, zero_R, best.zero)
    return best


@dataclass(frozen=True)
class SpQR:
    """Its parameters, all with their usual values."""

    bits: int = 3
    group_size: int = 16
    scale_bits: int = 3
    zero_bits: int = 3
    rows: int = 16
    outlier_threshold: float = 0.2


def spqr(weight_RI: Tensor, upper_II: Tensor, order: Tensor, options: SpQR) -> Tensor:
    """order: int64 [I], columns by descending activation."""
    weight_IR, pivots_I, size = weight_RI.T[order].contiguous(), upper_II.diagonal(), options.group_size
    variance_I = (weight_IR.double() / pivots_I[:, None].double()).var(dim=1)
    threshold = options.outlier_threshold * float(variance_I.mean())
    grid = None

    def quantize(j: int, weight_R: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal grid
        if j % size == 0:
            grid = _group_grid(weight_IR[j : j + size].T.contiguous(), pivots_I[j : j + size], threshold, options)
        codes_R = grid.codes(weight_R)
        values_R = grid.values(codes_R)
        kept_R = ((weight_R - values_R) / pivots_I[j]) ** 2 > threshold
        codes_R = torch.where(kept_R, grid.codes(torch.zeros_like(weight_R)), codes_R)
        return codes_R, torch.where(kept_R, half(weight_R), values_R)

    return solve(weight_IR, upper_II, quantize)


def _group_grid(group_Rg: Tensor, pivots_g: Tensor, threshold: float, options: SpQR) -> GridB:
    """Fit a grid without the weights that spoil it, then quantize its scales and zeros."""
    candidate_Rg = _leave_one_out_gains(group_Rg, pivots_g, options.bits) > threshold
    mean_R = group_Rg.masked_fill(candidate_Rg, 0).sum(dim=1) / (~candidate_Rg).sum(dim=1).clamp(min=1)
    grid = GridB(torch.where(candidate_Rg, mean_R[:, None], group_Rg), options.bits)
    grid.scale = _second_level(grid.scale, options.scale_bits, options.rows)
    grid.zero = _second_level(grid.zero, options.zero_bits, options.rows)
    return grid


def _leave_one_out_gains(group_Rg: Tensor, pivots_g: Tensor, bits: int) -> Tensor:
    """By how much a row's error falls without each of its weights: one grid for each, [R, g, g - 1] at once."""
    size = group_Rg.shape[1]
    others = torch.tensor([[j for j in range(size) if j != k] for k in range(size)])
    return _errors(group_Rg, pivots_g, bits)[:, None] - _errors(group_Rg[:, others], pivots_g[others], bits)


def _errors(weights: Tensor, pivots: Tensor, bits: int) -> Tensor:
    """Sum over the last dimension of ((w - q) / d)**2, each on the grid of its range."""
    lo, hi = weights.aminmax(dim=-1, keepdim=True)
    scale = (hi - lo) / (2**bits - 1)
    zero = -lo / scale
    codes = torch.round(weights / scale + zero).clamp(0, 2**bits - 1)
    return (((scale * (codes - zero)) - weights) / pivots).square().sum(dim=-1)


def _second_level(values_R: Tensor, bits: int, rows: int) -> Tensor:
    """Quantize the numbers of every `rows` consecutive rows, which divide R, on one grid."""
    values_TS = values_R.view(-1, rows)
    lo, hi = values_TS.aminmax(dim=1, keepdim=True)
    scale = half((hi - lo) / (2**bits - 1))
    zero = half(-lo / scale)
    codes_TS = torch.round(values_TS / scale + zero).clamp(0, 2**bits - 1)
    return (scale * (codes_TS - zero)).flatten()
