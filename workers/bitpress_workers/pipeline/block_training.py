"""Training all linears of a block together: one shard's part of it.

Two streams of activations pass through the network: `reference`, that of the dense model, and
`calibration`, that of the model compressed so far. The dense block's outputs for both are what the
compressed block is trained to give for the latter. Each step of the optimizer sees one sequence,
so a block's training is one walk over all sequences, many times; sequences stay where they are, and
what a walk changes, `TrainingState`, goes from shard to shard in the sequences' order.
So any number of shards takes the same steps.

Shapes: N sequences, T tokens of a sequence, D hidden size, O rows (outputs), I columns (inputs).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear
from bitpress_workers.methods.block_base import BlockMethod, LinearState, Survey, TrainedLinear
from bitpress_workers.models.family import Tap
from bitpress_workers.models.skeleton import tap_inputs
from bitpress_workers.pipeline.activations import Activations

Surveys = dict[str, list[Survey]]


@dataclass
class TrainingState:
    """What a step changes, on the CPU: every linear's state, AdamW's moments, the loss before each step so far."""

    linears: dict[str, LinearState]
    moments: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class OutputError:
    """Squared error and squared output of one linear, over the tokens of one sequence that reach it."""

    error: float
    reference: float
    num_tokens: int


@dataclass(frozen=True)
class TrainedPart:
    """What the report says of one trained linear; errors: by sequence of one shard."""

    shape: tuple[int, int]
    stored_bits: int
    num_constant_rows: int
    errors: tuple[OutputError, ...]


def pass_reference(
    method: BlockMethod, block: nn.Module, block_index: int, taps: Sequence[Tap], reference: Activations
) -> tuple[Surveys, bool]:
    """Replace the reference stream by the dense block's outputs.

    Returns what the method saw, one survey for each of this shard's sequences by tap, and whether
    all outputs are finite.
    """
    surveys: Surveys = {tap.name: [] for tap in taps}
    if not len(reference):
        return surveys, True
    with tap_inputs(block, taps, lambda tap, x_TI: surveys[tap].append(method.survey(x_TI).cpu())):
        return surveys, reference.advance(block, block_index)


def begin(
    method: BlockMethod, weights: Mapping[str, Tensor], taps: Sequence[Tap], surveys: Sequence[Surveys]
) -> TrainingState:
    """Start from the dense weights [O, I], by name, and all shards' surveys, in their order."""
    linears: dict[str, LinearState] = {}
    for tap in taps:
        num_columns = weights[tap.linears[0]].shape[1]
        agreed = method.agree([survey for part in surveys for survey in part[tap.name]], num_columns)
        for name in tap.linears:
            weight_OI = weights[name]
            state = method.begin(weight_OI, agreed.to(weight_OI.device))
            linears[name] = {key: tensor.cpu() for key, tensor in state.items()}
    return TrainingState(linears)


class BlockTraining:
    """The dense block in hand, its targets for this shard's sequences, and its linears in training."""

    def __init__(
        self,
        method: BlockMethod,
        block: nn.Module,
        block_index: int,
        block_name: str,
        state: TrainingState,
        streams: tuple[Activations, Activations],
    ) -> None:
        """streams: the reference, which is past the dense block already, and the calibration, which is not.

        Raises NumericalError, naming the linear.
        """
        self._method, self._block, self._block_index, self._name = method, block, block_index, block_name
        self._reference, self._calibration = streams
        self._linears: dict[str, TrainedLinear] = {}
        for name, linear in state.linears.items():
            with self._naming(name):
                self._linears[name] = method.prepare(self._weight(name), _on(self._weight(name).device, linear))
        self._targets = [
            self._calibration.forward(block, block_index, sequence)
            for sequence in (range(len(self._calibration)) if method.epochs else ())
        ]

    def walk(self, state: TrainingState) -> TrainingState:
        """Take one step for each of this shard's sequences; `state` is used up.

        Raises NumericalError when a loss is not finite.
        """
        linears = {name: _on(self._weight(name).device, linear) for name, linear in state.linears.items()}
        optimizer = self._optimizer(linears, state.moments)
        losses = list(state.losses)
        for sequence, target_TD in enumerate(self._targets):
            weights = {f"{name}.weight": self._linears[name].weight(linear) for name, linear in linears.items()}
            with reproducible_attention():
                block = _with_weights(self._block, weights)
                output_TD = self._calibration.forward(block, self._block_index, sequence)
                loss = self._method.loss(output_TD, [self._reference.hidden(sequence), target_TD])
                optimizer.zero_grad()
                loss.backward()
            losses.append(loss.item())
            if not isfinite(losses[-1]):
                raise NumericalError(f"{self._name}: the loss of training step {len(losses)} is {losses[-1]}")
            optimizer.step()
        on_cpu = {name: _on(torch.device("cpu"), linear) for name, linear in linears.items()}
        return TrainingState(on_cpu, _moments(optimizer), losses)

    def compress(self, state: TrainingState) -> dict[str, CompressedLinear]:
        """Return the linears as they will be stored. Raises NumericalError, naming the linear."""
        compressed = {}
        for name, linear in state.linears.items():
            with self._naming(name):
                compressed[name] = self._linears[name].compress(_on(self._weight(name).device, linear))
        return compressed

    def parts(self, compressed: Mapping[str, CompressedLinear], taps: Sequence[Tap]) -> dict[str, TrainedPart]:
        """Return what the report says of each linear, from this shard's sequences."""
        errors = self._errors(compressed, taps)
        return {
            name: TrainedPart(
                linear.shape, linear.stored_bits(), self._linears[name].num_constant_rows, tuple(errors[name])
            )
            for name, linear in compressed.items()
        }

    def _errors(self, compressed: Mapping[str, CompressedLinear], taps: Sequence[Tap]) -> dict[str, list[OutputError]]:
        """Compare outputs for the inputs that the dense block's linears get from the compressed model so far."""
        errors: dict[str, list[OutputError]] = {name: [] for name in compressed}
        differences = {name: self._weight(name) - linear.dequantize() for name, linear in compressed.items()}
        linears_of = {tap.name: tap.linears for tap in taps}

        def compare(tap: str, x_TI: Tensor) -> None:
            for name in linears_of[tap]:
                weights = (differences[name], self._weight(name))
                energies = [float((x_TI @ weight_OI.T).double().square().sum()) for weight_OI in weights]
                errors[name].append(OutputError(energies[0], energies[1], len(x_TI)))

        for sequence in range(len(self._calibration)):
            with tap_inputs(self._block, taps, compare):
                self._calibration.forward(self._block, self._block_index, sequence)
        return errors

    def _optimizer(self, linears: Mapping[str, LinearState], moments: dict[str, Any]) -> AdamW:
        groups = [
            {"params": [linear[key].requires_grad_() for linear in linears.values()], "lr": rate}
            for key, rate in self._method.learning_rates.items()
        ]
        optimizer = AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        if moments:
            optimizer.load_state_dict(moments)
        return optimizer

    @contextmanager
    def _naming(self, linear: str) -> Iterator[None]:
        try:
            yield
        except NumericalError as error:
            raise NumericalError(f"{self._name}.{linear}: {error.message}") from error

    def _weight(self, name: str) -> Tensor:
        return self._block.get_parameter(f"{name}.weight").data


def reproducible_attention() -> AbstractContextManager[None]:
    """Attention by plain matrix products: on accelerators the backward of fused kernels adds up in no fixed order."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def _with_weights(block: nn.Module, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The block's forward with other weights in the place of its own."""
    return lambda *args, **kwargs: functional_call(block, dict(weights), args, kwargs)


def _on(device: torch.device, linear: LinearState) -> LinearState:
    """A copy of a linear's state; a fleet in one process hands the same one to every shard."""
    return {key: tensor.detach().to(device, copy=True) for key, tensor in linear.items()}


def _moments(optimizer: AdamW) -> dict[str, Any]:
    """AdamW's state on the CPU."""
    found = optimizer.state_dict()
    state = {index: {key: value.cpu() for key, value in of_one.items()} for index, of_one in found["state"].items()}
    return {"state": state, "param_groups": found["param_groups"]}
