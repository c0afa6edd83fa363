"""PTQ1.61: one sign for most weights, a few bits for the salient input channels, scales trained by block.

Source: Zhao et al. 2025, arXiv 2502.13179, and its code (zjq0455/PTQ1.61), which rules where the two differ.

Of a linear's input channels the floor(percent / 100 * I) + 1 with the largest activations are salient:
their weights become codes on a grid fitted to the whole row. Any other weight is

    row_rotation_i * column_rotation_j * (scale_i * sign_ij + mean_i)

where mean_i is the mean of the row's non-salient non-zero weights W_ij, scale_i that of their
magnitudes, sign_ij = sign(W_ij - mean_i), and both rotations start at 1. Scales and rotations are
trained, means and signs are not, so no gradient has to pass through a rounding.

Deviations:
* Channels are ranked in float32, ties by index; float16, as published, may select twice as many.
* sign(0) is +1, there is no third sign to store; a row whose non-salient weights are all alike
  keeps that one value (scale 0), which is what a sign of 0 comes to.
* Products of row scales and rotations, column rotations and the grids' scales are rounded to the
  16 bits they are stored in before the next block sees their effect.

Worked example, one of two channels salient, 2 bits: activations of at most [3, 1] make channel 0
salient. W = [[1, 0.5], [-2, 0.25]]: the grids span 0 .. 1 (scale 1/3, zero 0) and -2 .. 0.25
(scale 0.75, zero 3), so channel 0 becomes 1 (code 3) and -2.25 (code 0). Channel 1 has one weight
in each row, alike by itself: it stays [0.5, 0.25].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from bitpress.formats import SalientBinary
from bitpress.formats.base import Part
from bitpress.formats.salient_binary import salient_parts, sign_parts
from bitpress.methods import PTQ161Config
from bitpress_workers.methods.block_base import BlockMethod, LinearState
from bitpress_workers.numerics.grid import fit_integer_zero


class PTQ161(BlockMethod):
    def __init__(self, config: PTQ161Config, *, scale_dtype: torch.dtype = torch.float16) -> None:
        """scale_dtype: of the salient grids' scales; float32 reproduces published numbers and cannot be stored."""
        self._config = config
        self._scale_dtype = scale_dtype
        self.epochs = config.epochs
        self.learning_rates = {
            "scale": config.scale_learning_rate,
            "row_rotation": config.rotation_learning_rate,
            "column_rotation": config.rotation_learning_rate,
        }

    def survey(self, x_TI: Tensor) -> Tensor:
        """Return the largest magnitude of every channel, float32 [I], or the sum of magnitudes, float64 [I]."""
        if self._config.saliency == "max":
            return x_TI.abs().amax(dim=0).float()
        return x_TI.abs().double().sum(dim=0)

    def agree(self, surveys: Sequence[Tensor], num_columns: int) -> Tensor:
        """Return which channels are salient, bool [I]. A tap's channels see the same tokens: sums rank as means do."""
        saliency_NI = torch.stack([torch.zeros(num_columns), *surveys])  # of no tokens at all: the first channels
        saliency_I = saliency_NI.amax(dim=0) if self._config.saliency == "max" else saliency_NI.sum(dim=0)
        return salient_channels(saliency_I.float(), self._config.salient_percent)

    def begin(self, weight_OI: Tensor, agreed: Tensor) -> LinearState:
        mean_O1, scale_O1 = row_statistics(weight_OI, agreed)
        return {
            "salient": agreed,
            "mean": mean_O1,
            "scale": scale_O1,
            "row_rotation": torch.ones_like(mean_O1),
            "column_rotation": weight_OI.new_ones(1, weight_OI.shape[1]),
        }

    def prepare(self, weight_OI: Tensor, state: LinearState) -> "BinaryLinear":
        bits, salient_I = self._config.salient_bits, state["salient"]
        lo_O1, hi_O1 = weight_OI.aminmax(dim=1, keepdim=True)
        grid = fit_integer_zero(lo_O1, hi_O1, bits, scale_dtype=self._scale_dtype)
        codes_OI = grid.encode(weight_OI)
        signs_OI = torch.where(weight_OI < state["mean"], -1, 1).to(torch.int8)
        alike_O1 = state["scale"] == 0
        return BinaryLinear(
            salient_OI=grid.decode(codes_OI).mul_(salient_I),
            signs_OI=signs_OI.mul_(~(alike_O1 | salient_I)),
            others_I=(~salient_I).float(),
            stored=salient_parts(salient_I, codes_OI[:, salient_I].to(torch.uint8), bits, grid.scale, grid.zero),
            num_constant_rows=int((alike_O1 & ~salient_I.all()).sum()),
        )

    def loss(self, output_TD: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Sum over targets of the mean squared error and -ln |mean cosine|, tokens' cosines over D."""
        loss = output_TD.new_zeros(())
        for target_TD in targets:
            cosine = cosine_similarity(output_TD, target_TD, dim=-1).mean()
            loss = loss + mse_loss(output_TD, target_TD) - cosine.abs().log()
        return loss


@dataclass(frozen=True)
class BinaryLinear:
    """What is fixed of one linear.

    salient_OI: values of salient columns, elsewhere 0. signs_OI: int8, 0 in salient columns and in
    rows without spread. others_I: 0 for salient columns, else 1. stored: the salient columns, packed.
    """

    salient_OI: Tensor
    signs_OI: Tensor
    others_I: Tensor
    stored: Part
    num_constant_rows: int

    def weight(self, state: LinearState) -> Tensor:
        rotation_OI = state["row_rotation"] * (state["column_rotation"] * self.others_I)
        return self.salient_OI + rotation_OI * (state["scale"] * self.signs_OI + state["mean"])

    def compress(self, state: LinearState) -> SalientBinary:
        others_I = ~state["salient"]
        signs = sign_parts(
            self.signs_OI[:, others_I] >= 0,
            (state["row_rotation"] * state["scale"])[:, 0],
            (state["row_rotation"] * state["mean"])[:, 0],
            state["column_rotation"][0, others_I],
        )
        return SalientBinary.from_parts(self.stored, signs)


def salient_channels(saliency_I: Tensor, percent: float) -> Tensor:
    """Return the floor(percent / 100 * I) + 1 channels of largest saliency, the first of equals; bool [I]."""
    count = int(len(saliency_I) * Fraction(str(percent)) / 100) + 1
    ranked = torch.argsort(saliency_I, descending=True, stable=True)
    return torch.zeros_like(saliency_I, dtype=torch.bool).index_fill_(0, ranked[:count], True)


def row_statistics(weight_OI: Tensor, salient_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and mean magnitude of each row's non-salient non-zero weights, float32 [O, 1].

    A row whose non-salient weights are all alike has that value for its mean, and 0 for the magnitude.
    """
    others_ON = weight_OI[:, ~salient_I]
    if not others_ON.shape[1]:
        return weight_OI.new_zeros(len(weight_OI), 1), weight_OI.new_zeros(len(weight_OI), 1)
    count_O1 = others_ON.count_nonzero(dim=1).clamp(min=1).unsqueeze(1)
    mean_O1, scale_O1 = (values.sum(dim=1, keepdim=True) / count_O1 for values in (others_ON, others_ON.abs()))
    first_O1 = others_ON[:, :1]
    alike_O1 = (others_ON == first_O1).all(dim=1, keepdim=True)
    return torch.where(alike_O1, first_O1, mean_O1), torch.where(alike_O1, 0.0, scale_O1)
