"""RTN: every weight to the nearest value of its grid; no calibration enters.

Worked example, 2 bits: the row [-1, 0.5, 2] spans 3, so scale = 1 and zero = 1; the codes are
[0, 1, 3] (0.5 rounds to even) and the values [-1, 0, 2].

Source: the baseline of GPTQ (Frantar et al. 2022, arXiv 2210.17323), here also with groups of
columns and with 16-bit scales rounded before use. A symmetric grid spans -max|w| .. max|w| also
for rows without a negative weight, which published code clips to half of the range.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from bitpress.formats import GroupedAffine, statistics
from bitpress.formats.base import ROW_MULTIPLE
from bitpress.formats.grouped_affine import affine_parts
from bitpress.methods import RTNConfig
from bitpress_workers.methods.base import Agreement, SolvedRows, Survey, group_deviations
from bitpress_workers.numerics.grid import IntegerZeroGrid, fit_integer_zero, is_too_fine
from bitpress_workers.numerics.hessian import Factor, Gram, unfactored

ROWS_AT_ONCE = 256  # nothing crosses rows: this bounds memory and changes no code


class RTN:
    propagation: Literal["block", "tap", "linear"] = "block"
    survey_rounds = 0
    factoring = None

    def __init__(self, config: RTNConfig) -> None:
        self._config = config

    def row_tile(self, at_least: int) -> int:
        return at_least + -at_least % ROW_MULTIPLE

    def factor(self, gram: Gram) -> Factor:
        return unfactored(gram.num_columns, gram.device, gram.num_tokens)

    def begin(self, weights: Sequence[Tensor], factor: Factor, row_tile: int) -> "RTNRows":
        return RTNRows(self._config, weights)

    def agree(self, surveys: Sequence[Survey], agreed: Agreement | None) -> Agreement:
        raise AssertionError("rows of RTN have nothing to agree on")


class RTNRows:
    """Constant groups: those of zeros only."""

    def __init__(self, config: RTNConfig, weights: Sequence[Tensor]) -> None:
        self._config = config
        self._weights = weights

    def survey(self, agreed: Sequence[Agreement] | None) -> Sequence[Sequence[Survey]]:
        return [[] for _ in self._weights]

    def solve(self, agreed: Sequence[Agreement] | None) -> Iterator[SolvedRows]:
        return map(self._solve, self._weights)

    def _solve(self, weight_RI: Tensor) -> SolvedRows:
        config = self._config
        num_columns = weight_RI.shape[1]
        size = min(config.group_size or num_columns, num_columns)
        lo_RG, hi_RG = _group_ranges(weight_RI, size)
        grid = fit_integer_zero(lo_RG, hi_RG, config.bits, symmetric=config.symmetric)
        codes_RI = torch.empty_like(weight_RI, dtype=torch.uint8)
        parts = (x.split(ROWS_AT_ONCE) for x in (weight_RI, codes_RI, grid.scale, grid.zero))
        for weight_KI, codes_KI, *grid_KG in zip(*parts, strict=True):
            scale_KI, zero_KI = (x.repeat_interleave(size, dim=1)[:, :num_columns] for x in grid_KG)
            codes_KI.copy_(IntegerZeroGrid(scale_KI, zero_KI, config.bits).encode(weight_KI))
        scale, zero = statistics.of_integer_zero(grid.scale, grid.zero, config.bits, symmetric=config.symmetric)
        compressed = GroupedAffine.from_parts(affine_parts(codes_RI, config.bits, size, scale, zero))
        too_fine_RG = is_too_fine(lo_RG.clamp(max=0), hi_RG.clamp(min=0), config.bits)
        constant_RG = (lo_RG == 0) & (hi_RG == 0)
        return SolvedRows(compressed, group_deviations(constant_RG, too_fine_RG, num_columns, config.group_size))


def _group_ranges(weight_RI: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return smallest and largest weight of every row and group, [R, G]; the last group may be short."""
    ranges = [group.aminmax(dim=1) for group in weight_RI.split(size, dim=1)]
    return torch.stack([r.min for r in ranges], dim=1), torch.stack([r.max for r in ranges], dim=1)
