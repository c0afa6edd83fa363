"""Experts as ordinary linears, in the place of transformers' fused ones.

A mixture-of-experts block of transformers holds all of its experts in two parameters, gate_up_proj [E, 2M, D]
and down_proj [E, D, M]. What is compressed is one matrix with its own inputs, so both the calibrated and
the loaded model get one linear for each expert and projection instead: `mlp.experts.3.up_proj`. Routing
and its weights stay transformers' own.

Shapes: T tokens, D hidden size, E experts, K experts of a token, M width of an expert.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """One gated feed-forward network."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        like: dict[str, Any] = {"bias": False, "device": fused.down_proj.device, "dtype": fused.down_proj.dtype}
        _, hidden, width = fused.down_proj.shape
        self.gate_proj = nn.Linear(hidden, width, **like)
        self.up_proj = nn.Linear(hidden, width, **like)
        self.down_proj = nn.Linear(width, hidden, **like)
        self.act_fn = fused.act_fn

    def forward(self, x_TD: Tensor) -> Tensor:
        output_TD: Tensor = self.down_proj(self.act_fn(self.gate_proj(x_TD)) * self.up_proj(x_TD))
        return output_TD


class LinearExperts(nn.ModuleList):
    """All experts of a block; computes what transformers' fused experts compute."""

    def __init__(self, fused: nn.Module) -> None:
        """fused: a module of transformers with gated experts and no biases; its weights are not taken over."""
        super().__init__(Expert(fused) for _ in range(int(fused.num_experts)))  # type: ignore[arg-type]

    def forward(self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of each token's experts; an expert without tokens is not called."""
        output_TD = torch.zeros_like(hidden_TD)
        for number in sorted(set(experts_TK.flatten().tolist())):
            choice, token = torch.where(experts_TK.T.eq(number))
            weighted_TD = self[number](hidden_TD[token]) * weights_TK[token, choice, None]
            output_TD.index_add_(0, token, weighted_TD.to(output_TD.dtype))
        return output_TD


def split_experts(model: nn.Module) -> None:
    """Replace a model's fused experts, weights and all; a model without any is left as it is.

    Experts of another make (with biases, transposed or interleaved weights) stay fused.
    """
    for name, module in list(model.named_modules()):
        if _is_fused(module):
            model.set_submodule(name, LinearExperts(module))


def _is_fused(module: nn.Module) -> bool:
    # What transformers' decorator `use_experts_implementation` notes of every class of fused experts.
    facts = ("has_gate", "is_concatenated", "has_bias", "is_transposed", "has_post_expert_norm")
    return [getattr(module, fact, None) for fact in facts] == [True, True, False, False, False]
