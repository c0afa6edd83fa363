"""The methods as their papers write them: one column at a time, every step spelled out, speed no concern.

Written from the specification alone, on tensors of any float dtype (float64 where rounding must
not matter). `store` rounds what is kept in 16 bits; the identity reproduces published numbers.

Shapes: R rows, I columns, g columns of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Store = Callable[[Tensor], Tensor]


def exact(values: Tensor) -> Tensor:
    return values


def half(values: Tensor) -> Tensor:
    return values.to(torch.float16).to(values.dtype)


def half_scale(scale: Tensor) -> Tensor:
    return half(scale).clamp(min=2.0**-24)


@dataclass
class Solution:
    """Values and codes in solve order; loss is half the sum of squared errors over d; outliers are (row, column)."""

    values_RI: Tensor
    codes_RI: Tensor
    loss: float
    order: list[int]
    outliers: set[tuple[int, int]] = field(default_factory=set)
    threshold: float = 0.0

    def natural(self) -> Tensor:
        values = torch.empty_like(self.values_RI)
        values[:, self.order] = self.values_RI
        return values


def hessian(sequences: list[Tensor]) -> Tensor:
    """The running average over sequences; its divisor counts sequences, not tokens."""
    result = torch.zeros(sequences[0].shape[1], sequences[0].shape[1], dtype=sequences[0].dtype)
    for count, x_TI in enumerate(sequences):
        scaled = (2 / (count + 1)) ** 0.5 * x_TI
        result = result * (count / (count + 1)) + scaled.T @ scaled
    return result


def upper_factor(h_II: Tensor) -> Tensor:
    """U with inverse(H) = U'U, by inverting first."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h_II))
    return torch.linalg.cholesky(inverse, upper=True)


def damp_gptq(h_II: Tensor, damping: float) -> Tensor:
    h_II = h_II.clone()
    diagonal = h_II.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    return h_II


def damp_spqr(h_II: Tensor, damping: float) -> Tensor:
    h_II = h_II.clone()
    diagonal = h_II.diagonal()
    dead = diagonal == 0
    diagonal += damping * diagonal.abs().mean()
    diagonal[dead] = 1
    return h_II


def activation_order(diagonal: Tensor) -> list[int]:
    return sorted(range(len(diagonal)), key=lambda j: (-float(diagonal[j]), j))


def damped_error(difference_RI: Tensor, h_II: Tensor) -> float:
    """Half the trace of D H D'."""
    difference_RI, h_II = difference_RI.double(), h_II.double()
    return 0.5 * float(((difference_RI @ h_II) * difference_RI).sum())


class GridA:
    """Integer zero; the range contains 0. One grid per row of [R, g]."""

    def __init__(self, w_Rg: Tensor, bits: int, store: Store = exact, *, symmetric: bool = False, shrink: float = 1.0):
        self.top = 2**bits - 1
        lo, hi = w_Rg.min(dim=1).values.clamp(max=0), w_Rg.max(dim=1).values.clamp(min=0)
        if symmetric:
            hi = torch.maximum(-lo, hi)
            lo = -hi
        empty = lo == hi
        lo, hi = shrink * torch.where(empty, -1.0, lo), shrink * torch.where(empty, 1.0, hi)
        self.scale = store((hi - lo) / self.top)
        middle = torch.full_like(lo, (self.top + 1) / 2)
        self.zero = middle if symmetric else torch.round(-lo / self.scale).clamp(0, self.top)

    def codes(self, w_R: Tensor) -> Tensor:
        return (torch.round(w_R / self.scale) + self.zero).clamp(0, self.top)

    def values(self, codes_R: Tensor) -> Tensor:
        return self.scale * (codes_R - self.zero)


def search_grid_a(w_RI: Tensor, bits: int, store: Store = exact, *, symmetric: bool = False) -> GridA:
    """The best of 80 shrunk ranges per row, by the 2.4-norm of the weights' errors."""
    best = GridA(w_RI, bits, store, symmetric=symmetric)
    best_error = torch.full((len(w_RI),), float("inf"), dtype=w_RI.dtype)
    for step in range(80):
        grid = GridA(w_RI, bits, store, symmetric=symmetric, shrink=1 - step / 100)
        error = torch.zeros_like(best_error)
        for j in range(w_RI.shape[1]):
            error += (grid.values(grid.codes(w_RI[:, j])) - w_RI[:, j]).abs() ** 2.4
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best.scale = torch.where(better, grid.scale, best.scale)
        best.zero = torch.where(better, grid.zero, best.zero)
    return best


class GridB:
    """Real zero; the range is that of the weights, or reaches from 0 to them when they are all the same."""

    def __init__(self, w_Rg: Tensor, bits: int, *, symmetric: bool = False, round_zero: bool = False):
        self.top = 2**bits - 1
        lo, hi = w_Rg.min(dim=1).values, w_Rg.max(dim=1).values
        if symmetric:
            hi = torch.maximum(lo.abs(), hi.abs())
            lo = -hi
        same = lo == hi
        lo, hi = torch.where(same, lo.clamp(max=0), lo), torch.where(same, hi.clamp(min=0), hi)
        self.scale = (hi - lo) / self.top
        safe = torch.where(self.scale == 0, 1.0, self.scale)
        self.zero = torch.full_like(lo, (self.top + 1) / 2) if symmetric else -lo / safe
        if round_zero:
            self.zero = torch.round(self.zero)

    def codes(self, w_R: Tensor) -> Tensor:
        return torch.round(w_R / self.scale.clamp(min=1e-9) + self.zero).clamp(0, self.top)

    def values(self, codes_R: Tensor) -> Tensor:
        return self.scale * (codes_R - self.zero)


def bilevel(values_R: Tensor, bits: int, rows: int, store: Store) -> Tensor:
    """Quantize the numbers of every `rows` consecutive rows on one grid; return what they decode to."""
    decoded = []
    for tile in values_R.split(rows):
        lo, hi = tile.min(), tile.max()
        if lo == hi:
            decoded.append(store(tile))
            continue
        scale = store((hi - lo) / (2**bits - 1))
        zero = store(-lo / scale)
        codes = torch.round(tile / scale.clamp(min=1e-9) + zero).clamp(0, 2**bits - 1)
        decoded.append(scale * (codes - zero))
    return torch.cat(decoded)


def rtn(
    w_RI: Tensor, bits: int, group_size: int | None = None, store: Store = exact, *, symmetric: bool = False
) -> Tensor:
    size = group_size or w_RI.shape[1]
    pieces = []
    for group in w_RI.split(size, dim=1):
        grid = GridA(group, bits, store, symmetric=symmetric)
        pieces += [grid.values(grid.codes(group[:, j])) for j in range(group.shape[1])]
    return torch.stack(pieces, dim=1)


def gptq(
    w_RI: Tensor,
    h_II: Tensor,
    bits: int,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    group_size: int | None = None,
    stale_block: int | None = None,
    static: bool = False,
    symmetric: bool = False,
    search: bool = False,
    store: Store = exact,
) -> Solution:
    """GPTQ with a grid per row, or per group fitted when its first column is reached, or before all columns (static).

    stale_block: a group's grid sees the weights as they were when this many columns' block began.
    """

    def fit(group_Rg: Tensor) -> GridA:
        return (search_grid_a if search else GridA)(group_Rg, bits, store, symmetric=symmetric)

    dead = h_II.diagonal() == 0
    row_grid = fit(w_RI)
    w_RI = w_RI.masked_fill(dead, 0)
    static_grids = [fit(group) for group in w_RI.split(group_size, dim=1)] if static and group_size else []
    diagonal = torch.where(dead, 1.0, h_II.diagonal())
    order = activation_order(diagonal) if act_order else list(range(len(h_II)))
    w_RI, h_II = w_RI[:, order].clone(), h_II[order][:, order]
    u_II = upper_factor(damp_gptq(h_II, damping))
    codes_RI, values_RI, loss, grid = torch.zeros_like(w_RI), torch.zeros_like(w_RI), 0.0, row_grid
    at_block_start = w_RI.clone()
    for j in range(w_RI.shape[1]):
        if stale_block and j % stale_block == 0:
            at_block_start = w_RI.clone()
        if group_size and static:
            grid = static_grids[order[j] // group_size]
        elif group_size and j % group_size == 0:
            grid = fit((at_block_start if stale_block else w_RI)[:, j : j + group_size])
        codes_RI[:, j] = grid.codes(w_RI[:, j])
        values_RI[:, j] = grid.values(codes_RI[:, j])
        error = (w_RI[:, j] - values_RI[:, j]) / u_II[j, j]
        loss += 0.5 * float((error**2).sum())
        for k in range(j + 1, w_RI.shape[1]):
            w_RI[:, k] -= error * u_II[j, k]
    return Solution(values_RI, codes_RI, loss, order)


def septq(
    w_RI: Tensor, h_II: Tensor, bits: int, percent: float, store: Store = exact, damping: float = 0.01
) -> Solution:
    w_RI = w_RI.masked_fill(h_II.diagonal() == 0, 0)
    u_II = upper_factor(damp_gptq(h_II, damping))
    d_I = u_II.diagonal()
    grid = search_grid_a(w_RI, bits, half_scale if store is half else exact)
    rounded = torch.stack([grid.values(grid.codes(column)) for column in w_RI.T], dim=1)
    importance = (w_RI - rounded) ** 2 / d_I**2
    threshold = importance.flatten().sort(descending=True).values[int(w_RI.numel() * percent / 100)]
    mask = importance >= threshold
    w_RI = w_RI.clone()
    codes_RI, values_RI, loss = torch.zeros_like(w_RI), torch.zeros_like(w_RI), 0.0
    for j in range(w_RI.shape[1]):
        codes_RI[:, j] = grid.codes(w_RI[:, j])
        values_RI[:, j] = torch.where(mask[:, j], store(w_RI[:, j]), grid.values(codes_RI[:, j]))
        error = (w_RI[:, j] - values_RI[:, j]) / d_I[j]
        loss += 0.5 * float((error**2).sum())
        for k in range(j + 1, w_RI.shape[1]):
            w_RI[:, k] -= error * u_II[j, k]
    outliers = {(int(i), int(j)) for i, j in mask.nonzero()}
    return Solution(values_RI, codes_RI, loss, list(range(len(h_II))), outliers, float(threshold))


def leave_one_out_gains(group_Rg: Tensor, d_g: Tensor, bits: int, *, symmetric: bool = False) -> Tensor:
    """By how much a row's error falls without each of its weights, by fitting every one of these grids."""
    gains = torch.zeros_like(group_Rg)
    size = group_Rg.shape[1]

    def error(columns: list[int]) -> Tensor:
        grid = GridB(group_Rg[:, columns], bits, symmetric=symmetric)
        total = torch.zeros_like(group_Rg[:, 0])
        for j in columns:
            total += ((grid.values(grid.codes(group_Rg[:, j])) - group_Rg[:, j]) / d_g[j]) ** 2
        return total

    if size == 1:
        return gains
    whole = error(list(range(size)))
    for k in range(size):
        gains[:, k] = whole - error([j for j in range(size) if j != k])
    return gains


@dataclass(frozen=True)
class SpQROptions:
    bits: int = 3
    group_size: int | None = 16
    scale_bits: int | None = 3
    zero_bits: int | None = 3
    rows: int = 16
    outlier_threshold: float | None = 0.2
    simplified: bool = False
    act_order: bool = True
    damping: float = 1.0
    symmetric: bool = False
    round_zero: bool = False
    store: Store = exact


def spqr(w_RI: Tensor, h_II: Tensor, options: SpQROptions) -> Solution:
    store = options.store
    order = activation_order(h_II.diagonal()) if options.act_order else list(range(len(h_II)))
    w_RI, h_II = w_RI[:, order].clone(), h_II[order][:, order]
    dead = h_II.diagonal() == 0
    w_RI[:, dead] = 0
    u_II = upper_factor(damp_spqr(h_II, options.damping))
    d_I = u_II.diagonal()
    spread = float((w_RI.var(dim=0) / d_I**2).mean()) if len(w_RI) > 1 else 0.0
    threshold = None if options.outlier_threshold is None else options.outlier_threshold * spread
    solution = Solution(torch.zeros_like(w_RI), torch.zeros_like(w_RI), 0.0, order, threshold=threshold or 0.0)
    size = options.group_size or len(h_II)
    for j in range(w_RI.shape[1]):
        if j % size == 0:
            grid = _group_grid(w_RI[:, j : j + size], d_I[j : j + size], threshold, options)
        codes = grid.codes(w_RI[:, j])
        values = grid.values(codes)
        outlier = torch.zeros(len(w_RI), dtype=torch.bool)
        if threshold is not None:
            outlier = ((w_RI[:, j] - values) / d_I[j]) ** 2 > threshold
        codes = torch.where(outlier, grid.codes(torch.zeros_like(codes)), codes)
        values = torch.where(outlier, store(w_RI[:, j]), values)
        if dead[j]:
            codes, values, outlier = torch.zeros_like(codes), torch.zeros_like(values), torch.zeros_like(outlier)
        solution.outliers |= {(int(i), j) for i in outlier.nonzero()}
        solution.codes_RI[:, j], solution.values_RI[:, j] = codes, values
        error = (w_RI[:, j] - values) / d_I[j]
        solution.loss += 0.5 * float((error**2).sum())
        for k in range(j + 1, w_RI.shape[1]):
            w_RI[:, k] -= error * u_II[j, k]
    return solution


def _group_grid(group_Rg: Tensor, d_g: Tensor, threshold: float | None, options: SpQROptions) -> GridB:
    group_Rg = group_Rg.clone()
    if threshold is not None and not options.simplified:
        gains = leave_one_out_gains(group_Rg, d_g, options.bits, symmetric=options.symmetric)
        for i, row in enumerate(group_Rg):
            candidate = gains[i] > threshold
            if candidate.any():
                row[candidate] = row[~candidate].sum() / max(int((~candidate).sum()), 1)
    grid = GridB(group_Rg, options.bits, symmetric=options.symmetric, round_zero=options.round_zero)
    if options.scale_bits is None or options.zero_bits is None:
        store_scale = half_scale if options.store is half else exact
        grid.scale, grid.zero = store_scale(grid.scale), options.store(grid.zero)
        return grid
    grid.scale = bilevel(grid.scale, options.scale_bits, options.rows, options.store)
    if not options.symmetric and (not options.round_zero or options.zero_bits < options.bits):
        grid.zero = bilevel(grid.zero, options.zero_bits, options.rows, options.store)
    return grid
