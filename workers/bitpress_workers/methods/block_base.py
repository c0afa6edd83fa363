"""The seam between a method that trains whole blocks and whatever spreads it over devices.

Such a method takes a dense block and fits all of its linears together, so that the compressed
block's outputs come near those of the dense one. Its weights in training are functions of a few
trained tensors, the linear's state; the block itself and the optimizer are the caller's business.

What a method sees of the dense model's activations passes through `survey` (for each sequence) and
`agree` (once for each tap); the state that follows is computed once and handed to every shard, so
a sum in it has the same bits everywhere. What each shard derives from state and weight (`prepare`,
`compress`) is exactly rounded elementwise work.

Shapes: O rows (outputs), I columns (inputs), T tokens of one sequence, D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from bitpress.formats.base import CompressedLinear

Survey = Any
Agreement = Any
LinearState = dict[str, Tensor]


class TrainedLinear(Protocol):
    """One linear in training; holds what is fixed."""

    @property
    def num_constant_rows(self) -> int:
        """Rows without any spread, which are stored as their one value."""
        ...

    def weight(self, state: LinearState) -> Tensor:
        """Return the weight that a state stands for, float32 [O, I], differentiable in what is trained."""
        ...

    def compress(self, state: LinearState) -> CompressedLinear:
        """Return the linear as it will be stored. Raises NumericalError for a number beyond 16 bits."""
        ...


class BlockMethod(ABC):
    """One method that trains blocks, with its parameters.

    epochs: passes over the calibration sequences. learning_rates: of the trained tensors of a
    linear's state, by their names; the others are fixed.
    """

    epochs: int
    learning_rates: Mapping[str, float]

    @abstractmethod
    def survey(self, x_TI: Tensor) -> Survey:
        """Look at one sequence's inputs of a tap, in the dense model."""

    @abstractmethod
    def agree(self, surveys: Sequence[Survey], num_columns: int) -> Agreement:
        """Merge the surveys of all sequences, in their order, into what `begin` needs of I inputs."""

    @abstractmethod
    def begin(self, weight_OI: Tensor, agreed: Agreement) -> LinearState:
        """Return the state from which a linear's training starts; the weight is not modified."""

    @abstractmethod
    def prepare(self, weight_OI: Tensor, state: LinearState) -> TrainedLinear:
        """Derive what is fixed in training from the state that `begin` returned. Raises NumericalError."""

    @abstractmethod
    def loss(self, output_TD: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the distance of a block's output from those that the dense block has for the dense model's
        activations and for the compressed model's; a scalar, differentiable in the output."""
