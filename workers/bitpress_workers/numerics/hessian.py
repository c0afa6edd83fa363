"""Second-order statistics of a tap: gathering them in a fixed order, and factorizing them.

The Hessian of the layer-wise squared error is H = 2/c * X'X with c sequences (GPTQ, arXiv
2210.17323). What a column loop needs of it is U, the upper Cholesky factor of its damped
inverse, H^-1 = U'U.

Shapes: T tokens, I columns (inputs).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from bitpress.errors import NumericalError
from bitpress_workers.numerics.precision import full_float32
from bitpress_workers.numerics.triangular import blocks_of, is_finite, upper_inverse_factor

MAX_DAMPING_RAISES = 3
DAMPING_RAISE = 10.0
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


@dataclass
class Gram:
    """The raw sum X'X over some calibration tokens, with what it was summed over.

    A raw sum, not the running average of the published code: a sum can be cut anywhere and merged. It is
    symmetric, so only its strips are computed and kept, about half of it: of each block of columns the rows
    on and above the diagonal.

    upper: float32, one strip behind the other.
    """

    upper: Tensor
    num_columns: int
    num_sequences: int
    num_tokens: int

    @classmethod
    def zeros(cls, num_columns: int, device: torch.device | str = "cpu") -> Self:
        device = torch.device(device)
        return cls(torch.zeros(gram_size(num_columns, device), device=device), num_columns, 0, 0)

    @classmethod
    def of(cls, xtx_II: Tensor, num_sequences: int, num_tokens: int) -> Self:
        """Copy X'X, float32 [I, I]; what lies below its diagonal's blocks is not looked at."""
        gram = cls.zeros(len(xtx_II), xtx_II.device)
        for rows, strip_KN in gram.strips():
            strip_KN.copy_(xtx_II[rows, rows.start :])
        gram.num_sequences, gram.num_tokens = num_sequences, num_tokens
        return gram

    @property
    def device(self) -> torch.device:
        return self.upper.device

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the blocks of columns, each with a view of its rows from the diagonal on, [rows, I - rows.start]."""
        start = 0
        for rows in blocks_of(self.num_columns, self.device):
            size = _strip_size(rows, self.num_columns)
            yield rows, self.upper[start : start + size].view(rows.stop - rows.start, -1)
            start += size

    @property
    def xtx_II(self) -> Tensor:  # noqa: N802
        """X'X as a whole, a new float32 [I, I]."""
        xtx_II = self.upper.new_empty(self.num_columns, self.num_columns)
        for rows, strip_KN in self.strips():
            xtx_II[rows.start :, rows] = strip_KN.T
            xtx_II[rows, rows.start :] = strip_KN
        return xtx_II

    @property
    def diagonal_I(self) -> Tensor:  # noqa: N802
        """A new float32 [I]."""
        return torch.cat([strip_KN.diagonal() for _, strip_KN in self.strips()])

    @full_float32()
    def accumulate(self, x_TI: Tensor, num_sequences: int) -> None:
        """Add a micro-batch in place; x_TI any float dtype [..., I], every leading element a token.

        Products of 16-bit numbers are exact in float32, so on a GPU 16-bit activations go through its
        tensor cores as they are, and are summed in float32.
        """
        x_TI = x_TI.flatten(0, -2)
        if not (x_TI.is_cuda and x_TI.dtype in SIXTEEN_BITS):
            x_TI = x_TI.float()
        for rows, strip_KN in self.strips():
            _add_product(strip_KN, x_TI[:, rows], x_TI[:, rows.start :])
        self.num_sequences += num_sequences
        self.num_tokens += x_TI.shape[0]

    def add(self, other: "Gram") -> None:
        """Add the sum over other tokens, in place."""
        self.upper.add_(other.upper)
        self.num_sequences += other.num_sequences
        self.num_tokens += other.num_tokens


def gram_size(num_columns: int, device: torch.device) -> int:
    """Numbers that a Gram takes, on a device of this kind."""
    return sum(_strip_size(rows, num_columns) for rows in blocks_of(num_columns, device))


def _strip_size(rows: slice, num_columns: int) -> int:
    return (rows.stop - rows.start) * (num_columns - rows.start)


def _add_product(sum_KN: Tensor, a_TK: Tensor, b_TN: Tensor) -> None:
    """Add A'B in place; its sum is float32 whatever the type of A and B."""
    if a_TK.dtype == sum_KN.dtype:
        sum_KN.addmm_(a_TK.T, b_TN)
    else:
        torch.addmm(sum_KN, a_TK.T, b_TN, sum_KN.dtype, out=sum_KN)


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
            left = self.nodes.pop((start, length))
            left.add(gram)
            gram, length = left, 2 * length
        self.nodes[start, length] = gram


def reduce_tree(nodes: dict[Node, Gram], num_slices: int) -> Gram:
    """Merge the nodes of all holders into the Gram of all slices: the same bits whatever the split.

    The nodes are taken over. Raises ValueError when a slice is missing.
    """
    return _reduce(nodes, 0, 1 << (num_slices - 1).bit_length(), num_slices)


def _reduce(nodes: dict[Node, Gram], start: int, length: int, num_slices: int) -> Gram:
    if (start, length) in nodes:
        return nodes.pop((start, length))
    if length == 1:
        raise ValueError(f"slice {start} of {num_slices} is missing")
    half = length // 2
    gram = _reduce(nodes, start, half, num_slices)
    if start + half < num_slices:
        gram.add(_reduce(nodes, start + half, half, num_slices))
    return gram


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


@dataclass(frozen=True)
class Factoring:
    """The arguments of `factorize`: equal ones give equal factors of one Hessian."""

    damping: float
    order: Literal["natural", "activation"] = "natural"
    dead_columns: Literal["before damping", "after damping"] = "before damping"


def unfactored(num_columns: int, device: torch.device, num_tokens: int = 0) -> Factor:
    """Return a Factor for a method that looks at no Hessian: no column is dead to it."""
    dead_I = torch.zeros(num_columns, dtype=torch.bool, device=device)
    return Factor(torch.zeros(0, 0, device=device), None, dead_I, None, num_tokens)


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
    if not is_finite(gram.upper):
        raise NumericalError("the Hessian is not finite: an activation was NaN or infinite")
    diagonal_I = gram.diagonal_I.mul_(2.0 / gram.num_sequences)
    dead_I = diagonal_I == 0
    if dead_columns == "before damping":
        diagonal_I[dead_I] = 1.0
    order_I = None
    if order == "activation":
        order_I = torch.argsort(diagonal_I, descending=True, stable=True)
        diagonal_I, dead_I = diagonal_I[order_I], dead_I[order_I]
    undamped_I = dead_I if dead_columns == "after damping" else torch.zeros_like(dead_I)
    mean = float(diagonal_I.abs().mean())
    for raises in range(MAX_DAMPING_RAISES + 1):
        used = damping * DAMPING_RAISE**raises
        damped_I = torch.where(undamped_I, 1.0, diagonal_I + used * mean)
        upper_II = upper_inverse_factor(_reversed_hessian(gram, order_I, damped_I))
        if upper_II is not None:
            return Factor(upper_II, order_I, dead_I, used, gram.num_tokens)
    raise NumericalError(
        f"the Hessian is not positive definite, not even with damping {used:g} (asked for: {damping:g})"
    )


def _reversed_hessian(gram: Gram, order_I: Tensor | None, diagonal_I: Tensor) -> Tensor:
    """Return H in solve order with this diagonal, rows and columns last to first."""
    natural_I = torch.arange(gram.num_columns, device=gram.device)
    reversed_I = (natural_I if order_I is None else order_I).flip(0)
    place_I = torch.empty_like(natural_I)  # of each column of X'X in the result
    place_I[reversed_I] = natural_I
    hessian_II, strips = gram.upper.new_empty(gram.num_columns, gram.num_columns), list(gram.strips())
    for number, (rows, strip_KN) in enumerate(strips):
        before = [
            above_KN[:, rows.start - above.start : rows.stop - above.start].T for above, above_KN in strips[:number]
        ]
        rows_KI = torch.cat([*before, strip_KN], dim=1).mul_(2.0 / gram.num_sequences)
        hessian_II[place_I[rows]] = rows_KI.index_select(1, reversed_I)  # many times faster than indexing both at once
    hessian_II.diagonal().copy_(diagonal_I.flip(0))
    return hessian_II
