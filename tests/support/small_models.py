"""Small models with random weights, one of every family and variant, saved by transformers itself."""

from copy import deepcopy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_OPT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
_BLOOM: dict[str, Any] = {"vocab_size": 61, "hidden_size": 48, "n_layer": 3, "hidden_dropout": 0.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CONFIGS = {
    "llama": LlamaConfig(**_LLAMA_LIKE),
    "llama-tied": LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**_LLAMA_LIKE, attention_bias=True, mlp_bias=True),
    "llama-scaled-rope": LlamaConfig(**_LLAMA_LIKE, rope_parameters=_LLAMA3_ROPE),
    "mistral-sliding": MistralConfig(**_LLAMA_LIKE, sliding_window=6),
    "qwen2-mixed": Qwen2Config(**_LLAMA_LIKE, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": Qwen3Config(**_LLAMA_LIKE, head_dim=16),
    "opt": OPTConfig(**_OPT),
    "opt-350m": OPTConfig(**_OPT | {"word_embed_proj_dim": 16}, do_layer_norm_before=False),
    "bloom": BloomConfig(**_BLOOM, n_head=4),
    "bloom-six-heads": BloomConfig(**_BLOOM, n_head=6, apply_residual_connection_post_layernorm=True),
}


def build(name: str) -> PreTrainedModel:
    """Build a model by its name in CONFIGS; all of its weights are random, biases and norms included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model
