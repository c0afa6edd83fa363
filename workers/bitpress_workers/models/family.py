"""The decoder families: where a family's blocks are, and which of a block's linears share an input.

This short description is all that Bitpress knows of a family; the rest (embeddings, masks, positions,
norms, the head) is done by the family's own forward in transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bitpress.errors import UnsupportedModel


@dataclass(frozen=True)
class Tap:
    """The point in a block where one input feeds one or more linears.

    linears: names relative to the block, in the order in which the block's forward calls them.
    """

    name: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One decoder family.

    model_type: the `model_type` of its config.json.
    blocks: name of the list of blocks inside the causal language model, such as "model.layers".
    taps: all linears of a block, in execution order.
    returns_tuple: a block's forward returns (hidden states, ...), not the hidden states alone.
    """

    model_type: str
    blocks: str
    taps: tuple[Tap, ...]
    returns_tuple: bool = False


_LLAMA_TAPS = (
    Tap("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Tap("attention_output", ("self_attn.o_proj",)),
    Tap("mlp_input", ("mlp.gate_proj", "mlp.up_proj")),
    Tap("mlp_output", ("mlp.down_proj",)),
)

_OPT_TAPS = (
    Tap("attention_input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Tap("attention_output", ("self_attn.out_proj",)),
    Tap("mlp_input", ("fc1",)),
    Tap("mlp_output", ("fc2",)),
)

_BLOOM_TAPS = (
    Tap("attention_input", ("self_attention.query_key_value",)),
    Tap("attention_output", ("self_attention.dense",)),
    Tap("mlp_input", ("mlp.dense_h_to_4h",)),
    Tap("mlp_output", ("mlp.dense_4h_to_h",)),
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "model.layers", _LLAMA_TAPS),
        Family("mistral", "model.layers", _LLAMA_TAPS),
        Family("qwen2", "model.layers", _LLAMA_TAPS),
        Family("qwen3", "model.layers", _LLAMA_TAPS),
        Family("opt", "model.decoder.layers", _OPT_TAPS),
        Family("bloom", "transformer.h", _BLOOM_TAPS, returns_tuple=True),
    )
}


def family_of(model_type: str, architectures: Sequence[str] = ()) -> Family:
    """Return the family a config.json names.

    Raises UnsupportedModel, saying which families there are and how one is described.
    """
    family = FAMILIES.get(model_type)
    if family is not None:
        return family
    decoder = not architectures or any(name.endswith("ForCausalLM") for name in architectures)
    found = f"model_type {model_type!r}" + (f" ({', '.join(architectures)})" if architectures else "")
    raise UnsupportedModel(
        f"{found} {'has no description here' if decoder else 'is not a decoder language model'}; "
        f"the families known are {', '.join(FAMILIES)}. A decoder is described by a Family in "
        "bitpress_workers/models/family.py: the name of its list of blocks, and for each input inside a block "
        "the linears it feeds"
    )
