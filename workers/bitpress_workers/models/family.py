"""The decoder families: where a family's blocks are, and which of a block's linears share an input.

This short description is all that Bitpress knows of a family; the rest (embeddings, masks, positions,
norms, routers, the head) is done by the family's own forward in transformers.
"""

import itertools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from bitpress.errors import UnsupportedModel


@dataclass(frozen=True)
class Tap:
    """The point in a block where one input feeds one or more linears.

    linears: names relative to the block, in the order in which the block's forward calls them.
    routed: its input is the tokens that a router sends to one expert; in a forward these may be none.
    In a family's description a routed tap has "*" for the expert's number.
    """

    name: str
    linears: tuple[str, ...]
    routed: bool = False

    def of_expert(self, number: int) -> Self:
        names = tuple(linear.replace("*", str(number)) for linear in self.linears)
        return type(self)(self.name.replace("*", str(number)), names, self.routed)


@dataclass(frozen=True)
class Family:
    """One decoder family.

    model_type: the `model_type` of its config.json.
    blocks: name of the list of blocks inside the causal language model, such as "model.layers".
    taps: all linears that any block may have, in execution order; which of them a block has is looked up in it.
    kept_dense: modules with a matrix that is small and decides much (routers, gates), left as they are.
    stored_names: parts of tensor names in the model, and what checkpoints have in their place.
    returns_tuple: a block's forward returns (hidden states, ...), not the hidden states alone.
    """

    model_type: str
    blocks: str
    taps: tuple[Tap, ...]
    kept_dense: tuple[str, ...] = ()
    stored_names: tuple[tuple[str, str], ...] = ()
    returns_tuple: bool = False

    def stages(self, block: nn.Module) -> tuple[tuple[Tap, ...], ...]:
        """The taps of one block in execution order.

        Taps of one stage (the same input of every expert) do not feed each other: one forward serves them all.
        """
        linears = {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        stages = (tuple(_found(tap, linears)) for tap in self.taps)
        return tuple(stage for stage in stages if stage)

    def stored_name(self, name: str) -> str:
        """The name that checkpoints have for a tensor of the model."""
        for ours, theirs in self.stored_names:
            name = name.replace(ours, theirs)
        return name


def _found(described: Tap, linears: AbstractSet[str]) -> Iterator[Tap]:
    """The described tap, or one for each expert, with those of its linears that a block has."""
    for tap in map(described.of_expert, itertools.count()) if described.routed else (described,):
        present = tuple(name for name in tap.linears if name in linears)
        if not present:
            return
        yield replace(tap, linears=present)


def _sequential(attention_input: str, attention_output: str, mlp_input: str, mlp_output: str) -> tuple[Tap, ...]:
    """Attention, then a feed-forward network with an input of its own; names are separated by spaces."""
    return (
        Tap("attention_input", tuple(attention_input.split())),
        Tap("attention_output", (attention_output,)),
        Tap("mlp_input", tuple(mlp_input.split())),
        Tap("mlp_output", (mlp_output,)),
    )


def _parallel(block_input: str, attention_output: str, mlp_output: str) -> tuple[Tap, ...]:
    """Attention and a feed-forward network that share one input; names are separated by spaces."""
    return (
        Tap("block_input", tuple(block_input.split())),
        Tap("attention_output", (attention_output,)),
        Tap("mlp_output", (mlp_output,)),
    )


_QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
_GATED = "mlp.gate_proj mlp.up_proj"

_LLAMA = _sequential(_QKV, "self_attn.o_proj", _GATED, "mlp.down_proj")
_FUSED_GATE = _sequential(_QKV, "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_PLAIN_MLP = _sequential(_QKV, "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
_OPT = _sequential(_QKV, "self_attn.out_proj", "fc1", "fc2")
_PHI3 = _sequential("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_STARCODER2 = _sequential(_QKV, "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj")
# Falcon's variants feed attention and MLP from one norm or from two: described as two inputs, which is right for all.
_BLOOM = _sequential("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_GPT_NEOX = _sequential("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_PERSIMMON = _sequential("self_attn.query_key_value", "self_attn.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_GPT_NEO = _sequential(
    "attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj", "attn.attention.out_proj",
    "mlp.c_fc", "mlp.c_proj",
)  # fmt: skip
_MPT = _sequential("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")
_PHI = _parallel(f"{_QKV} mlp.fc1", "self_attn.dense", "mlp.fc2")
_COHERE = _parallel(f"{_QKV} {_GATED}", "self_attn.o_proj", "mlp.down_proj")
_GPT_J = _parallel("attn.q_proj attn.k_proj attn.v_proj mlp.fc_in", "attn.out_proj", "mlp.fc_out")
_CODEGEN = _parallel("attn.qkv_proj mlp.fc_in", "attn.out_proj", "mlp.fc_out")
_LATENT_ATTENTION = (
    Tap("attention_input", ("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")),
    Tap("query_input", ("self_attn.q_b_proj",)),
    Tap("key_value_input", ("self_attn.kv_b_proj",)),
    Tap("attention_output", ("self_attn.o_proj",)),
)
_EXPERTS = (
    Tap("experts.*.input", ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"), routed=True),
    Tap("experts.*.output", ("mlp.experts.*.down_proj",), routed=True),
)
_SHARED_EXPERT = (
    Tap("shared_expert_input", ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")),
    Tap("shared_expert_output", ("mlp.shared_expert.down_proj",)),
)
_SHARED_EXPERTS = (
    Tap("shared_experts_input", ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")),
    Tap("shared_experts_output", ("mlp.shared_experts.down_proj",)),
)
# Blocks with Llama's linears, whatever norms, biases and masks lie between them.
_LIKE_LLAMA = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "ministral", "ministral3", "olmo", "olmo2",
    "olmo3", "granite", "stablelm", "smollm3", "helium", "exaone4", "ernie4_5", "seed_oss", "hunyuan_v1_dense", "cwm",
)  # fmt: skip
_ATTENTION, _MLP = _LLAMA[:2], _LLAMA[2:]
_ROUTER = ("mlp.gate",)
_MIXTRAL_NAMES = (
    (".mlp.", ".block_sparse_moe."), (".gate_proj.", ".w1."), (".up_proj.", ".w3."), (".down_proj.", ".w2."),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(Family(model_type, "model.layers", _LLAMA) for model_type in _LIKE_LLAMA),
        Family("opt", "model.decoder.layers", _OPT),
        Family("xglm", "model.layers", _OPT),
        Family("biogpt", "biogpt.layers", _OPT),
        Family("bloom", "transformer.h", _BLOOM, returns_tuple=True),
        Family("falcon", "transformer.h", _BLOOM, returns_tuple=True),
        Family("gpt_neox", "gpt_neox.layers", _GPT_NEOX, stored_names=(("lm_head.", "embed_out."),)),
        Family("phi", "model.layers", _PHI),
        Family("phi3", "model.layers", _PHI3),
        Family("glm", "model.layers", _FUSED_GATE),
        Family("glm4", "model.layers", _FUSED_GATE),
        Family("starcoder2", "model.layers", _STARCODER2),
        Family("cohere", "model.layers", _COHERE, kept_dense=("self_attn.q_norm", "self_attn.k_norm")),
        Family("cohere2", "model.layers", _COHERE),
        Family("nemotron", "model.layers", _PLAIN_MLP),
        Family("arcee", "model.layers", _PLAIN_MLP),
        Family("apertus", "model.layers", _PLAIN_MLP),
        Family("jais2", "model.layers", _PLAIN_MLP),
        Family("persimmon", "model.layers", _PERSIMMON),
        Family("gptj", "transformer.h", _GPT_J, returns_tuple=True),
        Family("codegen", "transformer.h", _CODEGEN, returns_tuple=True),
        Family("gpt_neo", "transformer.h", _GPT_NEO, returns_tuple=True),
        Family("mpt", "transformer.blocks", _MPT, returns_tuple=True),
        Family("mixtral", "model.layers", _ATTENTION + _EXPERTS, _ROUTER, _MIXTRAL_NAMES),
        Family("qwen2_moe", "model.layers", _LLAMA + _SHARED_EXPERT + _EXPERTS, ("mlp.gate", "mlp.shared_expert_gate")),
        Family("qwen3_moe", "model.layers", _LLAMA + _EXPERTS, _ROUTER),
        Family("olmoe", "model.layers", _ATTENTION + _EXPERTS, _ROUTER),
        Family("deepseek_v2", "model.layers", _LATENT_ATTENTION + _MLP + _EXPERTS + _SHARED_EXPERTS, _ROUTER),
    )
}


def family_of(model_type: str, architectures: Sequence[str] = ()) -> Family:
    """Return the family a config.json names.

    Raises UnsupportedModel, saying which families there are and how one is described.
    """
    family = FAMILIES.get(model_type)
    if family is not None:
        return family
    found = f"model_type {model_type!r}" + (f" ({', '.join(architectures)})" if architectures else "")
    reason = "has no description here" if is_decoder(architectures) else "is not a decoder language model"
    raise UnsupportedModel(
        f"{found} {reason}; the families known are {', '.join(FAMILIES)}. A decoder is described by a Family in "
        "bitpress_workers/models/family.py: the name of its list of blocks, for each input inside a block "
        "the linears it feeds, and the small matrices that stay dense"
    )


def is_decoder(architectures: Sequence[str]) -> bool:
    """Whether the class names in a config.json, if any, say that the model predicts the next token."""
    return not architectures or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
