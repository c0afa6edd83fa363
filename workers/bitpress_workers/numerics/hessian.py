"""Second-order statistics of a tap: gathering them in a fixed order, and factorizing them.

The Hessian of the layer-wise squared error is H = 2/c * X'X with c sequences (GPTQ, arXiv
2210.17323). What a column loop needs of it is U, the upper Cholesky factor of its damped
inverse, H^-1 = U'U.

Shapes: T tokens, I columns (inputs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from bitpress.errors import NumericalError

MAX_DAMPING_RAISES = 3
DAMPING_RAISE = 10.0


@dataclass
class Gram:
    """The raw sum X'X over some calibration tokens, with what it was summed over.

    A raw sum, not the running average of the published code: a sum can be cut anywhere and merged.
    """

    xtx_II: Tensor
    num_sequences: int
    num_tokens: int

    @classmethod
    def zeros(cls, num_columns: int, device: torch.device | str = "cpu") -> Self:
        return cls(torch.zeros(num_columns, num_columns, device=device), 0, 0)

    def accumulate(self, x_TI: Tensor, num_sequences: int) -> None:
        """Add a micro-batch in place; x_TI any float dtype [..., I], every leading element a token."""
        x_TI = x_TI.flatten(0, -2).float()
        self.xtx_II.addmm_(x_TI.T, x_TI)
        self.num_sequences += num_sequences
        self.num_tokens += x_TI.shape[0]


def merge(a: Gram, b: Gram) -> Gram:
    """Sum two Grams into a new one."""
    return Gram(a.xtx_II + b.xtx_II, a.num_sequences + b.num_sequences, a.num_tokens + b.num_tokens)


Node = tuple[int, int]  # (first slice, number of slices): a subtree of the fixed merge tree


class GramTree:
    """One holder's part of the fixed pairwise tree over the slices 0, 1, 2, ...

    Floating-point sums depend on their order. Here the order is that of a binary tree over slice
    indices, whoever holds which slices: two nodes merge only when they are siblings in that tree.
    A holder of n consecutive slices keeps O(log n) Grams.
    """

    def __init__(self) -> None:
        self.nodes: dict[Node, Gram] = {}

    def add(self, index: int, gram: Gram) -> None:
        """Add slice `index`; slices come in ascending order. The Gram is taken over."""
        start, length = index, 1
        while start % (2 * length) == length and (start - length, length) in self.nodes:
            start -= length
            gram = merge(self.nodes.pop((start, length)), gram)
            length *= 2
        self.nodes[start, length] = gram


def reduce_tree(nodes: Mapping[Node, Gram], num_slices: int) -> Gram:
    """Merge the nodes of all holders into the Gram of all slices: the same bits whatever the split.

    Raises ValueError when a slice is missing.
    """

    def reduce(start: int, length: int) -> Gram:
        if (start, length) in nodes:
            return nodes[start, length]
        if length == 1:
            raise ValueError(f"slice {start} of {num_slices} is missing")
        half = length // 2
        left = reduce(start, half)
        return merge(left, reduce(start + half, half)) if start + half < num_slices else left

    return reduce(0, 1 << (num_slices - 1).bit_length())


@dataclass(frozen=True)
class Factor:
    """What rows are solved with: U of a tap's damped Hessian, columns in solve order.

    upper_II: float32 [I, I], H^-1 = U'U; [0, 0] for a method that solves without it.
    order_I: int64 [I], column k is column order_I[k] of the weight; None: natural order.
    dead_I: bool [I] in solve order, inputs that were 0 on every token.
    damping_used: share of the mean diagonal that was added, more than asked for if that did not suffice.
    """

    upper_II: Tensor
    order_I: Tensor | None
    dead_I: Tensor
    damping_used: float | None
    num_tokens: int

    @property
    def num_columns(self) -> int:
        return len(self.dead_I)

    @property
    def num_dead(self) -> int:
        return int(self.dead_I.sum())

    @property
    def dead_columns(self) -> Tensor:
        """Dead columns as numbered in the weight, int64 [num_dead]."""
        columns = self.dead_I.nonzero().flatten()
        return columns if self.order_I is None else self.order_I[columns]


def unfactored(gram: Gram) -> Factor:
    """Return a Factor for a method that looks at no Hessian: no column is dead to it."""
    dead_I = torch.zeros(len(gram.xtx_II), dtype=torch.bool, device=gram.xtx_II.device)
    return Factor(gram.xtx_II.new_zeros(0, 0), None, dead_I, None, gram.num_tokens)


def factorize(
    gram: Gram,
    *,
    damping: float,
    order: Literal["natural", "activation"] = "natural",
    dead_columns: Literal["before damping", "after damping"] = "before damping",
) -> Factor:
    """Damp and factorize H = 2/c * X'X.

    A dead column (diagonal 0) gets the diagonal 1: before damping, so that the mean diagonal sees it
    (GPTQ, SEPTQ), or after (SpQR). Activation order is by descending diagonal, ties by index.
    A matrix that is not positive definite is damped ten times more, three times at most.
    Raises NumericalError when it still is not, or when it is not finite.
    """
    if not bool(torch.isfinite(gram.xtx_II).all()):
        raise NumericalError("the Hessian is not finite: an activation was NaN or infinite")
    hessian_II = gram.xtx_II * (2.0 / gram.num_sequences)
    diagonal_I = hessian_II.diagonal()
    dead_I = diagonal_I == 0
    if dead_columns == "before damping":
        diagonal_I[dead_I] = 1.0
    order_I = None
    if order == "activation":
        order_I = torch.argsort(diagonal_I, descending=True, stable=True)
        hessian_II, dead_I = hessian_II[order_I][:, order_I], dead_I[order_I]
    undamped_I = dead_I if dead_columns == "after damping" else torch.zeros_like(dead_I)
    upper_II, damping_used = _damped_factor(hessian_II, undamped_I, damping)
    return Factor(upper_II, order_I, dead_I, damping_used, gram.num_tokens)


def _damped_factor(hessian_II: Tensor, undamped_I: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return U and the damping it took; hessian_II is overwritten. The diagonal is 1 where `undamped_I`."""
    bare_I = hessian_II.diagonal().clone()
    mean = float(bare_I.abs().mean())
    for raises in range(MAX_DAMPING_RAISES + 1):
        used = damping * DAMPING_RAISE**raises
        hessian_II.diagonal().copy_(torch.where(undamped_I, 1.0, bare_I + used * mean))
        upper_II = upper_inverse_factor(hessian_II)
        if upper_II is not None:
            return upper_II, used
    raise NumericalError(
        f"the Hessian is not positive definite, not even with damping {used:g} (asked for: {damping:g})"
    )


def upper_inverse_factor(matrix_II: Tensor) -> Tensor | None:
    """Return U, upper triangular, with inverse(matrix) = U'U; None when it is not positive definite.

    By one Cholesky factorization of the matrix with rows and columns reversed (J M J = L L') and one
    triangular inverse (U = J L^-1 J): two thirds of the work of inverting first, and better conditioned.
    """
    lower_II, info = torch.linalg.cholesky_ex(matrix_II.flip(0, 1))
    if int(info) != 0:
        return None
    identity_II = torch.eye(len(matrix_II), dtype=matrix_II.dtype, device=matrix_II.device)
    upper_II = torch.linalg.solve_triangular(lower_II, identity_II, upper=False).flip(0, 1)
    return upper_II if bool(torch.isfinite(upper_II).all()) else None
