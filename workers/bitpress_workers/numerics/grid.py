"""Grids: which values a code of a few bits can stand for, and how one is fitted to weights.

A grid is a scale and a zero; code c stands for scale * (c - zero). Two kinds, after the papers
that brought them:

  integer zero (RTN, GPTQ, SEPTQ): the range always contains 0, which is exactly on the grid
  real zero (SpQR): the range is that of the weights, and the zero any number

Scales and real zeros are rounded to `scale_dtype`, the type they are stored in, before anything
uses them, so that what is stored is what was calibrated; float32 reproduces published numbers.
A scale that rounds to 0 becomes the smallest positive number of that type.
A symmetric grid spans -max|w| .. max|w| for all rows, non-negative ones too: keeping their lower
end at 0, as published code does, leaves half of the codes unused and clips the largest weights.

Shapes: R rows, K columns; every function is elementwise in rows but for the search.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

SMALLEST_FLOAT16, SMALLEST_FLOAT32 = 2.0**-24, 2.0**-126
SMALLEST = {torch.float16: SMALLEST_FLOAT16, torch.float32: SMALLEST_FLOAT32}
SMALLEST_DIVISOR = 1e-9  # of weights on a real zero's grid (SpQR's published quantizer)
# A real zero this far from the codes means that the weights differ by less than 16 bits resolve.
MAX_REAL_ZERO = 2.0**14
SEARCH_STEPS = 80  # shrink factors 1.00, 0.99 .. 0.21 (SEPTQ: grid 100, maxshrink 0.8)
SEARCH_NORM = 2.4


@dataclass(frozen=True)
class IntegerZeroGrid:
    """scale, zero: float32, broadcastable to the weights; zero whole, 0 .. 2**bits - 1."""

    scale: Tensor
    zero: Tensor
    bits: int

    def encode(self, weights: Tensor) -> Tensor:
        """Return the nearest codes, whole float32."""
        return torch.div(weights, self.scale).round_().add_(self.zero).clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of codes, float32."""
        return torch.sub(codes, self.zero).mul_(self.scale)

    def __getitem__(self, index: int) -> Self:
        """One of several grids that lie along the first dimension."""
        return replace(self, scale=self.scale[index], zero=self.zero[index])


@dataclass(frozen=True)
class RealZeroGrid:
    """scale, zero: float32, broadcastable to the weights."""

    scale: Tensor
    zero: Tensor
    bits: int

    def encode(self, weights: Tensor) -> Tensor:
        """Return the nearest codes, whole float32; unlike above, scale and zero are applied before rounding."""
        return torch.div(weights, self.divisor).add_(self.zero).round_().clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of codes, float32."""
        return torch.sub(codes, self.zero).mul_(self.scale)

    def __getitem__(self, index: int) -> Self:
        """One of several grids that lie along the first dimension."""
        return replace(self, scale=self.scale[index], zero=self.zero[index])

    @cached_property
    def divisor(self) -> Tensor:
        """What weights are divided by: a scale that was itself quantized may be 0."""
        return self.scale.clamp(min=SMALLEST_DIVISOR)


Grid = IntegerZeroGrid | RealZeroGrid


def stack(grids: Sequence[IntegerZeroGrid]) -> IntegerZeroGrid:
    """Put grids of equal shape [R] one behind the other, [G, R]."""
    return IntegerZeroGrid(
        torch.stack([grid.scale for grid in grids]), torch.stack([grid.zero for grid in grids]), grids[0].bits
    )


def is_too_fine(lo: Tensor, hi: Tensor, bits: int) -> Tensor:
    """Where weights between lo and hi differ by so little that 16 bits hold no scale for them, bool."""
    return (hi > lo) & ((hi - lo) / (2**bits - 1) < SMALLEST_FLOAT16)


def stored_scale(scale: Tensor, scale_dtype: torch.dtype) -> Tensor:
    """Round positive scales as they will be stored; none becomes 0."""
    return scale.to(scale_dtype).float().clamp_(min=SMALLEST[scale_dtype])


def fit_integer_zero(
    lo: Tensor, hi: Tensor, bits: int, *, symmetric: bool = False, scale_dtype: torch.dtype = torch.float16
) -> IntegerZeroGrid:
    """Fit a grid to weights between lo and hi (float32, any shape). Source: GPTQ, arXiv 2210.17323, its quantizer."""
    lo, hi = _range_with_zero(lo, hi, symmetric)
    scale = stored_scale((hi - lo) / (2**bits - 1), scale_dtype)
    return IntegerZeroGrid(scale, _integer_zero(lo, scale, bits, symmetric), bits)


def search_integer_zero(
    weight_KR: Tensor,
    bits: int,
    *,
    tiles: Sequence[int],
    symmetric: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> IntegerZeroGrid:
    """Fit a grid per row by shrinking its range until the error's 2.4-norm is smallest; the widest wins ties.

    weight_KR: float32, not modified; tiles: how many rows are searched at a time, in order: powers and
    sums run here, whose bits may depend on the shape. Returns scale and zero [R].
    Source: SEPTQ (ghtll/SEPTQ), the `mse` option of its quantizer.
    """
    candidates = candidate_grids(weight_KR, bits, symmetric, scale_dtype)
    by_tile = zip(
        *(x.split(list(tiles), dim=1) for x in (weight_KR, candidates.scale, candidates.zero)),
        strict=True,
    )
    best = [_best_candidate(weight_KT, scale_ST, zero_ST, bits) for weight_KT, scale_ST, zero_ST in by_tile]
    return chosen(candidates, torch.cat(best))


def candidate_grids(weight_KR: Tensor, bits: int, symmetric: bool, scale_dtype: torch.dtype) -> IntegerZeroGrid:
    """Return the grids of a search, scale and zero [S, R], from the whole range of a row to its smallest."""
    lo_R, hi_R = _range_with_zero(weight_KR.amin(dim=0), weight_KR.amax(dim=0), symmetric)  # aminmax is slower
    shrink_S = torch.tensor([1 - step / 100 for step in range(SEARCH_STEPS)], device=lo_R.device)
    lo_SR, hi_SR = shrink_S[:, None] * lo_R, shrink_S[:, None] * hi_R
    scale_SR = stored_scale((hi_SR - lo_SR) / (2**bits - 1), scale_dtype)
    return IntegerZeroGrid(scale_SR, _integer_zero(lo_SR, scale_SR, bits, symmetric), bits)


def chosen(candidates: IntegerZeroGrid, best_R: Tensor) -> IntegerZeroGrid:
    """Return each row's candidate of index best_R, scale and zero [R]."""
    scale_R, zero_R = (x.gather(0, best_R[None])[0] for x in (candidates.scale, candidates.zero))
    return replace(candidates, scale=scale_R, zero=zero_R)


def _best_candidate(weight_KT: Tensor, scale_ST: Tensor, zero_ST: Tensor, bits: int) -> Tensor:
    """Return the index of each row's best candidate, the first of equals."""
    weight_TK = weight_KT.T.contiguous()
    least_T1 = weight_TK.new_full((len(weight_TK), 1), torch.inf)
    best_T1 = torch.zeros_like(least_T1, dtype=torch.int64)
    error_TK = torch.empty_like(weight_TK)
    for step, (scale_T1, zero_T1) in enumerate(zip(scale_ST[:, :, None], zero_ST[:, :, None], strict=True)):
        # clip(round(w / s) + z, 0, max) - z, in one pass less
        torch.div(weight_TK, scale_T1, out=error_TK).round_()
        error_TK.clamp_(-zero_T1, 2**bits - 1 - zero_T1).mul_(scale_T1)
        error_TK.sub_(weight_TK).abs_().pow_(SEARCH_NORM)
        error_T1 = error_TK.sum(dim=1, keepdim=True)
        better_T1 = error_T1 < least_T1  # never, where a scale was too large for its type
        best_T1.masked_fill_(better_T1, step)
        least_T1 = torch.where(better_T1, error_T1, least_T1)
    return best_T1.flatten()


def fit_real_zero(
    lo: Tensor,
    hi: Tensor,
    bits: int,
    *,
    symmetric: bool = False,
    round_zero: bool = False,
) -> RealZeroGrid:
    """Fit a grid to weights between lo and hi (float32, any shape); scale and zero are not rounded yet.

    Weights that are all the same, or differ by less than 16 bits resolve, get the range from 0 to
    them, of which both ends are on the grid (published code takes -1 .. 1, where neither is).
    Source: SpQR, arXiv 2306.03078, its quantizer.
    """
    maxq = 2**bits - 1
    if symmetric:
        hi = torch.maximum(lo.abs(), hi.abs())
        scale = (hi * 2 / maxq).clamp_(min=SMALLEST[torch.float32])
        return RealZeroGrid(scale, torch.full_like(scale, 2 ** (bits - 1)), bits)
    far = torch.maximum(lo.abs(), hi.abs()) * maxq > (hi - lo) * MAX_REAL_ZERO
    lo, hi = torch.where(far, lo.clamp(max=0), lo), torch.where(far, hi.clamp(min=0), hi)
    scale = ((hi - lo) / maxq).clamp_(min=SMALLEST[torch.float32])
    zero = -lo / scale
    return RealZeroGrid(scale, zero.round_() if round_zero else zero, bits)


def fit_statistics(values_TS: Tensor, bits: int, *, scale_dtype: torch.dtype = torch.float16) -> RealZeroGrid:
    """Fit the second-level grid of the S scales or zeros that share one; scale and zero [T, 1].

    Values that are all the same, or differ by less than 16 bits resolve, all decode to the lowest
    (published code decodes them to something near 0.14, whatever they were).
    Source: SpQR, arXiv 2306.03078, section 4.
    """
    lo, hi = values_TS.aminmax(dim=-1, keepdim=True)
    scale = stored_scale((hi - lo) / (2**bits - 1), scale_dtype)
    zero = (-lo / scale).to(scale_dtype).float()
    same = (hi == lo) | (zero.abs() > MAX_REAL_ZERO)
    scale, zero = torch.where(same, lo.to(scale_dtype).float(), scale), torch.where(same, -1.0, zero)
    return RealZeroGrid(scale, zero, bits)


def quantize_statistics(
    values_R: Tensor, index_TS: Tensor, bits: int, *, scale_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, RealZeroGrid]:
    """Put scales or zeros on second-level grids, one for each tile of rows.

    values_R: float32, not modified; index_TS: int64, the rows of each tile, which may name a row more than once.
    Returns codes, uint8 [R], what they decode to, float32 [R], and the grids, scale and zero [T].
    """
    values_TS = values_R[index_TS]
    grid = fit_statistics(values_TS, bits, scale_dtype=scale_dtype)
    codes_TS = grid.encode(values_TS)
    codes_R, decoded_R = torch.empty_like(values_R, dtype=torch.uint8), torch.empty_like(values_R)
    codes_R[index_TS], decoded_R[index_TS] = codes_TS.to(torch.uint8), grid.decode(codes_TS)
    return codes_R, decoded_R, RealZeroGrid(grid.scale.flatten(), grid.zero.flatten(), bits)


def _range_with_zero(lo: Tensor, hi: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric:
        hi = torch.maximum(lo.abs(), hi.abs())
        lo = -hi
    else:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    empty = lo == hi
    return torch.where(empty, -1.0, lo), torch.where(empty, 1.0, hi)


def _integer_zero(lo: Tensor, scale: Tensor, bits: int, symmetric: bool) -> Tensor:
    if symmetric:
        return torch.full_like(scale, 2 ** (bits - 1))
    # A scale that was rounded down may put the zero beyond the last code.
    return (-lo / scale).round_().clamp_(0, 2**bits - 1)
