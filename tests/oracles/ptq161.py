"""PTQ1.61 as its specification writes it: weight by weight, and a hand-made AdamW; speed no concern.

Works in any float dtype. `store` rounds the salient grids' scales; the identity reproduces published numbers.

Shapes: R rows, I columns, S tokens of a sequence, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from oracles.textbook import GridA, Store, exact

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def threshold(saliency_I: Tensor, percent: float) -> float:
    """The floor(percent / 100 * I)-th largest, counted from 0."""
    ordered = sorted(saliency_I.tolist(), reverse=True)
    return float(ordered[min(floor(percent / 100 * len(ordered)), len(ordered) - 1)])


def mask(saliency_I: Tensor, percent: float) -> list[bool]:
    """All that reach the threshold, but of those that tie with it only as many as are wanted, in order."""
    values, lowest = saliency_I.tolist(), threshold(saliency_I, percent)
    room = min(floor(percent / 100 * len(values)) + 1, len(values)) - sum(value > lowest for value in values)
    tied = [j for j, value in enumerate(values) if value == lowest][:room]
    return [value > lowest or j in tied for j, value in enumerate(values)]


@dataclass
class Scales:
    """One linear: mask and mean are fixed, the rest is trained."""

    weight_RI: Tensor
    mask: list[bool]
    mean: Tensor
    alpha: Tensor
    r1: Tensor
    r2: Tensor

    @classmethod
    def initial(cls, weight_RI: Tensor, mask: Sequence[bool]) -> "Scales":
        means, alphas = [], []
        for row in weight_RI.tolist():
            others = [value for value, salient in zip(row, mask, strict=True) if not salient and value != 0]
            means.append(sum(others) / len(others))
            alphas.append(sum(map(abs, others)) / len(others))
        mean, alpha = (torch.tensor(values, dtype=weight_RI.dtype)[:, None] for values in (means, alphas))
        rows, columns = weight_RI.shape
        r1, r2 = weight_RI.new_ones(rows, 1), weight_RI.new_ones(1, columns)
        return cls(weight_RI, list(mask), mean, alpha, r1, r2)

    def fake_weight(self, bits: int, store: Store = exact) -> Tensor:
        grid = GridA(self.weight_RI, bits, store)
        signs_RI = torch.sign(self.weight_RI - self.mean)
        columns = []
        for j, salient in enumerate(self.mask):
            if salient:
                columns.append(grid.values(grid.codes(self.weight_RI[:, j])))
            else:
                product = self.r1[:, 0] * self.r2[0, j]
                columns.append(product * (self.alpha[:, 0] * signs_RI[:, j] + self.mean[:, 0]))
        return torch.stack(columns, dim=1)

    def trained(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.alpha, self.r1, self.r2


def loss(output_SD: Tensor, dense_SD: Tensor, on_compressed_SD: Tensor) -> Tensor:
    total = torch.zeros((), dtype=output_SD.dtype)
    for target_SD in (dense_SD, on_compressed_SD):
        total = total + ((output_SD - target_SD) ** 2).mean()
        cosines = (output_SD * target_SD).sum(-1) / (output_SD.norm(dim=-1) * target_SD.norm(dim=-1))
        total = total - torch.log(torch.abs(cosines.mean()))
    return total


def train(
    forward: Forward,
    linears: Mapping[str, Scales],
    reference: Sequence[Tensor],
    compressed: Sequence[Tensor],
    *,
    epochs: int,
    learning_rates: tuple[float, float, float],
    bits: int,
    store: Store,
) -> list[float]:
    """Change the scales in place; returns the loss before each step.

    forward(weights, input) is the block; reference and compressed are its inputs in the dense and the
    compressed model, by sequence; learning_rates are those of alpha, r1 and r2.
    """
    dense = {name: scales.weight_RI for name, scales in linears.items()}
    trained = [tensor for scales in linears.values() for tensor in scales.trained()]
    rates = [rate for _ in linears for rate in learning_rates]
    first, second = [torch.zeros_like(t) for t in trained], [torch.zeros_like(t) for t in trained]
    losses: list[float] = []
    for _ in range(epochs):
        for f_SD, a_SD in zip(reference, compressed, strict=True):
            with torch.no_grad():
                targets = forward(dense, f_SD), forward(dense, a_SD)
            for tensor in trained:
                tensor.requires_grad_()
            weights = {name: scales.fake_weight(bits, store) for name, scales in linears.items()}
            value = loss(forward(weights, a_SD), *targets)
            gradients = torch.autograd.grad(value, trained)
            losses.append(value.item())
            for k, (tensor, gradient) in enumerate(zip(trained, gradients, strict=True)):
                first[k] = 0.9 * first[k] + 0.1 * gradient
                second[k] = 0.999 * second[k] + 0.001 * gradient**2
                m, v = first[k] / (1 - 0.9 ** len(losses)), second[k] / (1 - 0.999 ** len(losses))
                tensor.requires_grad_(False)
                tensor -= rates[k] * m / (v.sqrt() + 1e-8)
    return losses
