"""Which weights of a group spoil its grid: SpQR's leave-one-out search.

Shapes: g columns of a group, R rows.
Source: Dettmers et al. 2023 (arXiv 2306.03078), Algorithm 1, `outliers`.
"""

import torch
from torch import Tensor

from bitpress_workers.numerics.grid import fit_real_zero


def leave_one_out_gains(group_gR: Tensor, pivots_g: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Return by how much the group's error falls when a weight is left out, float32 [g, R].

    The error of a weight is ((w - q) / d)^2 on the grid of the weights that are left. A weight that
    is neither the only smallest nor the only largest leaves the grid as it is, so its gain is its
    own error; only those two need another grid.
    group_gR: float32, not modified; pivots_g: d of its columns.
    """
    if len(group_gR) == 1:
        return torch.zeros_like(group_gR)
    smallest, largest = group_gR.min(dim=0), group_gR.max(dim=0)
    second_lo_R = group_gR.scatter(0, smallest.indices[None], torch.inf).amin(dim=0)
    second_hi_R = group_gR.scatter(0, largest.indices[None], -torch.inf).amax(dim=0)
    # Three grids: of the whole group, without its smallest, without its largest weight.
    lo_3R = torch.stack([smallest.values, second_lo_R, smallest.values])
    hi_3R = torch.stack([largest.values, largest.values, second_hi_R])
    errors_3gR = _errors(group_gR, pivots_g, lo_3R, hi_3R, bits, symmetric)
    gains_gR = errors_3gR[0].clone()
    errors_3gR[1].scatter_(0, smallest.indices[None], 0)
    errors_3gR[2].scatter_(0, largest.indices[None], 0)
    totals_3R = sum_columns(errors_3gR.unbind(dim=1))
    for extreme, total_R, unique_R in (
        (smallest, totals_3R[1], second_lo_R > smallest.values),
        (largest, totals_3R[2], second_hi_R < largest.values),
    ):
        index_1R = extreme.indices[None]
        gain_R = torch.where(unique_R, totals_3R[0] - total_R, gains_gR.gather(0, index_1R))
        gains_gR.scatter_(0, index_1R, gain_R)
    return gains_gR


def _errors(group_gR: Tensor, pivots_g: Tensor, lo_3R: Tensor, hi_3R: Tensor, bits: int, symmetric: bool) -> Tensor:
    grid = fit_real_zero(lo_3R[:, None], hi_3R[:, None], bits, symmetric=symmetric)
    values_3gR = grid.decode(grid.encode(group_gR))
    return values_3gR.sub_(group_gR).div_(pivots_g[:, None]).square_()


def patched_range(
    weight_gR: Tensor, pivots_g: Tensor, bits: int, symmetric: bool, threshold_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Return smallest and largest weight [R] of a group whose candidates, gains above threshold_R, are replaced.

    weight_gR: float32, not modified; pivots_g: d of its columns; threshold_R: float32.
    """
    gains_gR = leave_one_out_gains(weight_gR, pivots_g, bits, symmetric)
    lo_R, hi_R = replace_candidates(weight_gR, gains_gR > threshold_R).aminmax(dim=0)
    return lo_R, hi_R


def replace_candidates(group_gR: Tensor, candidate_gR: Tensor) -> Tensor:
    """Return the group with candidates replaced by the mean of the row's other weights (0 if there are none)."""
    total_R = sum_columns(group_gR.masked_fill(candidate_gR, 0).unbind())
    count_R = (~candidate_gR).sum(dim=0).clamp_(min=1)
    return torch.where(candidate_gR, total_R / count_R, group_gR)


def sum_columns(columns: tuple[Tensor, ...]) -> Tensor:
    """Add columns one by one: unlike `sum`, the same bits for any number of rows."""
    total = columns[0].clone()
    for column in columns[1:]:
        total += column
    return total
