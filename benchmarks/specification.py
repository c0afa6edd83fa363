"""What the methods give by their specification: perplexity of a plain LLaMA of transformers, compressed block by block.

The measure of what a job gives, so nothing of bitpress_workers takes part. Grids, damping, factors and the
leave-one-out search are those of the textbook oracles, which do one column and one weight at a time; here an
error reaches all later columns in one step, or a real model would take hours. Statistics stay in 32 bits,
as published; only the resulting weights are rounded to the checkpoint's float16.

Shapes: N sequences, S tokens of a sequence, K windows, R rows (outputs) and I columns (inputs) of a linear.
"""

import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from oracles import textbook

Solver = Callable[[Tensor, Tensor], Tensor]

# Linears that share an input, and so a Hessian, in the order in which a block calls them.
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def calibration_sequences(text: str, tokenizer: PreTrainedTokenizerBase, calibration: dict[str, Any]) -> list[Tensor]:
    """N sequences [1, S] at offsets drawn uniformly from a text that is tokenized once."""
    tokens = torch.tensor(tokenizer(text, verbose=False).input_ids)
    length = calibration["sequence_length"]
    random.seed(calibration["seed"])
    offsets = [random.randint(0, len(tokens) - length - 1) for _ in range(calibration["num_sequences"])]
    return [tokens[None, offset : offset + length] for offset in offsets]


def windows(text: str, tokenizer: PreTrainedTokenizerBase, evaluation: dict[str, Any]) -> Tensor:
    """The first windows [K, S] of a text that is tokenized once."""
    tokens = torch.tensor(tokenizer(text, verbose=False).input_ids)
    count, length = evaluation["max_sequences"], evaluation["sequence_length"]
    return tokens[: count * length].view(count, length)


@torch.no_grad()
def perplexity(model: PreTrainedModel, windows_KS: Tensor) -> float:
    """exp of the mean over windows of the mean loss of a window's S - 1 predictions."""
    losses = [model(tokens_S[None], labels=tokens_S[None]).loss.double() for tokens_S in windows_KS]
    return float(torch.stack(losses).mean().exp())


@torch.no_grad()
def compress(model: PreTrainedModel, sequences: Sequence[Tensor], method: dict[str, Any]) -> None:
    """Compress every linear of every block in place; a block sees what compressed blocks before it put out.

    SpQR's Hessians all come from the block as it was, SEPTQ's from a block whose earlier linears are compressed.
    """
    parameters = {name: value for name, value in method.items() if name != "kind"}
    solve = partial({"rtn": rtn, "spqr": spqr, "septq": septq}[method["kind"]], **parameters)
    stages = [[group] for group in GROUPS] if method["kind"] == "septq" else [GROUPS]
    hidden, arguments = _block_inputs(model, sequences)
    for block in model.model.layers:
        for stage in stages:
            inputs = _collect(block, [group[0] for group in stage], hidden, arguments)
            for group in stage:
                hessian_II = textbook.hessian(inputs[group[0]])
                for name in group:
                    weight_RI = block.get_submodule(name).weight
                    weight_RI.copy_(solve(weight_RI, hessian_II).half())
        hidden = [block(x, **arguments) for x in hidden]


def rtn(weight_RI: Tensor, hessian_II: Tensor, bits: int) -> Tensor:
    return textbook.rtn(weight_RI, bits)


def septq(weight_RI: Tensor, hessian_II: Tensor, bits: int, retained_percent: float, damping: float) -> Tensor:
    upper_II = _factor(textbook.damp_gptq, hessian_II, damping)
    grid = textbook.search_grid_a(weight_RI, bits)
    weight_IR = weight_RI.T.contiguous()
    importance_IR = ((weight_IR - grid.values(grid.codes(weight_IR))) / upper_II.diagonal()[:, None]) ** 2
    ranked = importance_IR.flatten().sort(descending=True).values
    mask_IR = importance_IR >= ranked[int(len(ranked) * retained_percent / 100)]

    def quantize(j: int) -> Tensor:
        return torch.where(mask_IR[j], weight_IR[j], grid.values(grid.codes(weight_IR[j])))

    return _solve_columns(weight_IR, upper_II, quantize).T


def spqr(weight_RI: Tensor, hessian_II: Tensor, outlier_threshold: float, damping: float, **grids: int) -> Tensor:
    """Columns by descending activation; grids: bits, group_size and what _group_grid takes."""
    order = textbook.activation_order(hessian_II.diagonal())
    upper_II = _factor(textbook.damp_spqr, hessian_II[order][:, order], damping)
    weight_IR, pivots_I, size = weight_RI.T[order].clone(), upper_II.diagonal(), grids.pop("group_size")
    threshold = outlier_threshold * float((weight_IR.var(dim=1) / pivots_I**2).mean())
    grid = None

    def quantize(j: int) -> Tensor:
        nonlocal grid
        if j % size == 0:
            grid = _group_grid(weight_IR[j : j + size].T, pivots_I[j : j + size], threshold, **grids)
        values_R = grid.values(grid.codes(weight_IR[j]))
        outlier_R = ((weight_IR[j] - values_R) / pivots_I[j]) ** 2 > threshold
        return torch.where(outlier_R, weight_IR[j], values_R)

    solved_RI = torch.empty_like(weight_RI)
    solved_RI[:, order] = _solve_columns(weight_IR, upper_II, quantize).T
    return solved_RI


def _group_grid(
    group_Rg: Tensor,
    pivots_g: Tensor,
    threshold: float,
    *,
    bits: int,
    scale_bits: int,
    zero_bits: int,
    statistics_group_size: int,
) -> textbook.GridB:
    """Fit a grid without the weights that spoil it, then quantize its scales and zeros."""
    candidate_Rg = textbook.leave_one_out_gains(group_Rg, pivots_g, bits) > threshold
    others_R = group_Rg.masked_fill(candidate_Rg, 0).sum(dim=1) / (~candidate_Rg).sum(dim=1).clamp(min=1)
    grid = textbook.GridB(torch.where(candidate_Rg, others_R[:, None], group_Rg), bits)
    grid.scale = textbook.bilevel(grid.scale, scale_bits, statistics_group_size, textbook.exact)
    grid.zero = textbook.bilevel(grid.zero, zero_bits, statistics_group_size, textbook.exact)
    return grid


def _factor(damp: Callable[[Tensor, float], Tensor], hessian_II: Tensor, damping: float) -> Tensor:
    assert bool((hessian_II.diagonal() > 0).all()), "an input that is always zero has rules of its own"
    return textbook.upper_factor(damp(hessian_II, damping))


def _solve_columns(weight_IR: Tensor, upper_II: Tensor, quantize: Callable[[int], Tensor]) -> Tensor:
    """Replace one column after the other, and take its error out of all later ones."""
    for j in range(len(weight_IR)):
        values_R = quantize(j)
        error_R = (weight_IR[j] - values_R) / upper_II[j, j]
        weight_IR[j] = values_R
        weight_IR[j + 1 :] -= torch.outer(upper_II[j, j + 1 :], error_R)
    return weight_IR


class _Reached(Exception):
    """The first block was called."""


def _block_inputs(model: PreTrainedModel, sequences: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """Each sequence as it enters the first block, and what all blocks are called with besides."""
    hidden: list[Tensor] = []
    arguments: dict[str, Any] = {}

    def record(block: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0])
        arguments.update(kwargs)
        raise _Reached

    handle = model.model.layers[0].register_forward_pre_hook(record, with_kwargs=True)
    for tokens_1S in sequences:
        try:
            model(tokens_1S, use_cache=False)
        except _Reached:
            continue
    handle.remove()
    return hidden, arguments


def _collect(
    block: nn.Module, names: Sequence[str], hidden: Sequence[Tensor], arguments: dict[str, Any]
) -> dict[str, list[Tensor]]:
    """The inputs [S, I] of these linears for every sequence."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        block.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0][0]))
        for name in names
    ]
    for x in hidden:
        block(x, **arguments)
    for handle in handles:
        handle.remove()
    return inputs
