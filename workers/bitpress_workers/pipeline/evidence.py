"""What passes between shards while a tap's linears are solved, and what it proves of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitpress.artifacts import LinearDeviation
from bitpress.formats import CompressedLinear
from bitpress_workers.methods.base import SolvedRows
from bitpress_workers.numerics.hessian import Factor, Gram
from bitpress_workers.numerics.precision import full_float32
from bitpress_workers.pipeline.placement import tiles_of


@dataclass(frozen=True)
class TapFacts:
    """What the report says of a tap."""

    damping_used: float | None
    num_dead: int
    num_columns: int
    num_tokens: int


@dataclass(frozen=True)
class TapData:
    """What solving a tap's linears needs: the Hessian for the evidence, its factor for the solve."""

    gram: Gram
    factor: Factor

    def facts(self) -> TapFacts:
        return TapFacts(
            damping_used=self.factor.damping_used,
            num_dead=self.factor.num_dead,
            num_columns=self.factor.num_columns,
            num_tokens=self.gram.num_tokens,
        )


@dataclass(frozen=True)
class Part:
    """One shard's rows of a solved linear, with the squared output error and squared output of each row tile."""

    solved: SolvedRows
    errors: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Evidence:
    """What the report says of one linear."""

    shape: tuple[int, int]
    stored_bits: int
    relative_error: float
    outlier_fraction: float
    deviations: Mapping[LinearDeviation, int]


@full_float32()
def tile_errors(
    weight_RI: Tensor, compressed: CompressedLinear, gram: Gram, row_tile: int
) -> list[tuple[float, float]]:
    """Squared output error and squared output, tr(D G D') and tr(W G W'), of each tile of rows, G = X'X."""
    values_RI = compressed.dequantize().to(weight_RI.device)
    pairs = []
    for tile in tiles_of(range(len(weight_RI)), row_tile):
        weight_TI = weight_RI[tile.start : tile.stop].to(torch.float32, copy=True)  # tiles lie alike on every fleet
        difference_TI = weight_TI - values_RI[tile.start : tile.stop]
        energies = _energies(torch.cat((difference_TI, weight_TI)), gram)  # at once: a Gram is read half as often
        error, reference = energies.view(2, -1).sum(dim=1).tolist()
        pairs.append((error, reference))
    return pairs


def _energies(rows_TI: Tensor, gram: Gram) -> Tensor:
    """r G r' of each row, float64 [T]: twice what lies right of the diagonal and half of what lies on it."""
    halves_TI = torch.zeros_like(rows_TI)
    for block, strip_KN in gram.strips():
        rows_TK, size = rows_TI[:, block], len(strip_KN)
        halves_TI[:, block].addmm_(rows_TK, strip_KN[:, :size], alpha=0.5)
        halves_TI[:, block.stop :].addmm_(rows_TK, strip_KN[:, size:])
    return 2 * halves_TI.mul_(rows_TI).sum(dim=1, dtype=torch.float64)


def join_evidence(compressed: CompressedLinear, parts: Sequence[Part]) -> Evidence:
    """What is known of a linear from all its parts, in row order."""
    errors = [pair for part in parts for pair in part.errors]
    error, reference = sum(pair[0] for pair in errors), sum(pair[1] for pair in errors)
    return Evidence(
        shape=compressed.shape,
        stored_bits=compressed.stored_bits(),
        relative_error=error / reference if reference else 0.0,
        outlier_fraction=compressed.outlier_fraction,
        deviations={kind: sum(part.solved.deviations[kind] for part in parts) for kind in parts[0].solved.deviations},
    )
