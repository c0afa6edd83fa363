"""The Hessians of a block's taps: sums over this shard's slices, and factors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bitpress.errors import NumericalError
from bitpress_workers.methods.base import Method
from bitpress_workers.models.family import Tap
from bitpress_workers.models.skeleton import tap_inputs
from bitpress_workers.numerics.hessian import Gram, GramTree, Node
from bitpress_workers.numerics.triangular import is_finite
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.evidence import TapData

Nodes = dict[Node, Gram]


def collect(
    block: nn.Module,
    taps: Sequence[Tap],
    activations: Activations,
    slices: Sequence[range],
    forward: Callable[[int], object],
) -> dict[str, Nodes]:
    """Return, by tap, Grams of the maximal subtrees of the slices that are here.

    forward: runs the block over one micro-batch of the activations, given by its number.
    """
    trees = {tap.name: GramTree() for tap in taps}
    for slice_index, batches in activations.by_slice(slices).items():
        grams: dict[str, Gram] = {}
        for batch in batches:
            size = activations.size(batch)

            def accumulate(tap: str, x_TI: Tensor, grams: dict[str, Gram] = grams, size: int = size) -> None:
                if tap not in grams:
                    grams[tap] = Gram.zeros(x_TI.shape[-1], x_TI.device)
                grams[tap].accumulate(x_TI, size)

            with tap_inputs(block, taps, accumulate):
                forward(batch)
        for tap in taps:  # no token of a slice may have come to an expert
            trees[tap.name].add(slice_index, grams.pop(tap.name) if tap.name in grams else _silent(block, tap))
    return {tap: tree.nodes for tap, tree in trees.items()}


def factorized(name: str, method: Method, gram: Gram) -> TapData:
    """Return what solving tap `name` needs, given the Gram of all slices. Raises NumericalError, naming the tap."""
    gram = _checked(name, gram)
    try:
        return TapData(gram, method.factor(gram))
    except NumericalError as error:
        raise NumericalError(f"{name}: {error.message}") from error


def _checked(name: str, gram: Gram) -> Gram:
    if not gram.num_tokens:  # an expert that no token came to: no input matters more than another
        return Gram.of(torch.eye(gram.num_columns, device=gram.device), num_sequences=1, num_tokens=0)
    if not is_finite(gram.upper):
        raise NumericalError(f"{name}: an activation is not finite, or too large for float32 statistics")
    return gram


def _silent(block: nn.Module, tap: Tap) -> Gram:
    weight_OI = block.get_parameter(f"{tap.linears[0]}.weight")
    return Gram.zeros(weight_OI.shape[1], weight_OI.device)
