"""Small models with random weights, one of every family and variant, saved by transformers itself."""

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT_J_LIKE: dict[str, Any] = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "rotary_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
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
_FALCON: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.1, 2.2, 2.3],
    "original_max_position_embeddings": 16,  # the tests' sequences are longer
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.1,
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {**_EXPERTS, "moe_intermediate_size": 20}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 20,
    "num_key_value_heads": 4,
}
_MIXED_MASKS = ["sliding_attention", "full_attention", "sliding_attention"]


def _like_llama(model_type: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **_LLAMA_LIKE | changes)


CONFIGS = {
    "llama": _like_llama("llama"),
    "llama-tied": _like_llama("llama", tie_word_embeddings=True),
    "llama-biases": _like_llama("llama", attention_bias=True, mlp_bias=True),
    "llama-scaled-rope": _like_llama("llama", rope_parameters=_LLAMA3_ROPE),
    "mistral-sliding": _like_llama("mistral", sliding_window=6),
    "ministral": _like_llama("ministral", head_dim=8, sliding_window=6, layer_types=_MIXED_MASKS),
    "ministral3": _like_llama("ministral3", head_dim=8, rope_parameters=_YARN_ROPE),
    "qwen2-mixed": _like_llama("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": _like_llama("qwen3", head_dim=16),
    "gemma": _like_llama("gemma", head_dim=16, num_key_value_heads=1),
    "gemma2": _like_llama("gemma2", head_dim=16, sliding_window=6, query_pre_attn_scalar=8),
    "gemma3": _like_llama("gemma3_text", head_dim=16, sliding_window=6, layer_types=_MIXED_MASKS),
    "olmo": _like_llama("olmo", clip_qkv=0.5),
    "olmo2": _like_llama("olmo2"),
    "olmo3": _like_llama("olmo3", sliding_window=6, layer_types=_MIXED_MASKS),
    "granite": _like_llama("granite", embedding_multiplier=2.0, logits_scaling=3.0, residual_multiplier=0.5),
    "stablelm": _like_llama("stablelm", use_qkv_bias=True),
    "stablelm-parallel": _like_llama("stablelm", use_parallel_residual=True, qk_layernorm=True),
    "smollm3": _like_llama("smollm3", no_rope_layer_interval=2),
    "helium": _like_llama("helium", head_dim=8),
    "exaone4": _like_llama("exaone4", sliding_window=6, layer_types=_MIXED_MASKS),
    "ernie4_5": _like_llama("ernie4_5", head_dim=16),
    "seed_oss": _like_llama("seed_oss", head_dim=16),
    "hunyuan": _like_llama("hunyuan_v1_dense", head_dim=16),
    "cwm": _like_llama("cwm", head_dim=8, rope_parameters=_LLAMA3_ROPE, sliding_window=6, layer_types=_MIXED_MASKS),
    "phi": _like_llama("phi"),
    "phi-norms": _like_llama("phi", qk_layernorm=True),
    "phi3": _like_llama("phi3"),
    "phi3-long": _like_llama("phi3", rope_parameters=_LONG_ROPE, original_max_position_embeddings=16),
    "glm": _like_llama("glm", head_dim=8),
    "glm4": _like_llama("glm4", head_dim=8),
    "starcoder2": _like_llama("starcoder2"),
    "cohere": _like_llama("cohere"),
    "cohere-norms": _like_llama("cohere", use_qk_norm=True),
    "cohere2": _like_llama("cohere2", sliding_window=6, layer_types=_MIXED_MASKS),
    "nemotron": _like_llama("nemotron"),
    "arcee": _like_llama("arcee"),
    "apertus": _like_llama("apertus", rope_parameters=_LLAMA3_ROPE),
    "jais2": _like_llama("jais2"),
    "persimmon": _like_llama("persimmon"),
    "gpt_neox": _like_llama("gpt_neox"),
    "gpt_neox-sequential": _like_llama("gpt_neox", use_parallel_residual=False, attention_bias=False),
    "gpt_neo": AutoConfig.for_model(
        "gpt_neo", vocab_size=61, hidden_size=32, intermediate_size=44, num_layers=3, num_heads=4, window_size=6,
        attention_types=[[["global", "local", "global"], 1]], max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2,
    ),
    "gptj": AutoConfig.for_model("gptj", **_GPT_J_LIKE),
    "codegen": AutoConfig.for_model("codegen", **_GPT_J_LIKE),
    "mpt": AutoConfig.for_model("mpt", vocab_size=61, d_model=32, n_heads=4, n_layers=3, max_seq_len=64),
    "opt": AutoConfig.for_model("opt", **_OPT),
    "opt-350m": AutoConfig.for_model("opt", **_OPT | {"word_embed_proj_dim": 16}, do_layer_norm_before=False),
    "xglm": AutoConfig.for_model(
        "xglm", vocab_size=61, d_model=32, ffn_dim=44, num_layers=3, attention_heads=4, max_position_embeddings=64
    ),
    "biogpt": _like_llama("biogpt"),
    "bloom": AutoConfig.for_model("bloom", **_BLOOM, n_head=4),
    "bloom-six-heads": AutoConfig.for_model("bloom", **_BLOOM, n_head=6, apply_residual_connection_post_layernorm=True),
    "falcon-7b": AutoConfig.for_model("falcon", **_FALCON),
    "falcon-40b": AutoConfig.for_model("falcon", **_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-11b": AutoConfig.for_model(
        "falcon", **_FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon-rw": AutoConfig.for_model(
        "falcon", **_FALCON, alibi=True, multi_query=False, parallel_attn=False, bias=True
    ),
    "mixtral": _like_llama("mixtral", num_local_experts=6),
    "qwen2_moe": _like_llama("qwen2_moe", **_QWEN_EXPERTS, shared_expert_intermediate_size=24, mlp_only_layers=[0]),
    "qwen2_moe-sparse-step": _like_llama("qwen2_moe", **_QWEN_EXPERTS, decoder_sparse_step=2),
    "qwen3_moe": _like_llama("qwen3_moe", **_QWEN_EXPERTS, head_dim=16, norm_topk_prob=True),
    "deepseek_v2_moe": _like_llama("deepseek_v2", **_LATENT, q_lora_rank=None),
    "deepseek_v2_moe-low-rank": _like_llama("deepseek_v2", **_LATENT, q_lora_rank=12),
    "olmoe": _like_llama("olmoe", **_EXPERTS),
}  # fmt: skip


def build(name: str, **changes: Any) -> PreTrainedModel:
    """Build a model by its name in CONFIGS; all of its weights are random, biases and norms included."""
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[name])
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model
