"""What a result can be written as besides the native artifact, and which methods' results each target holds.

dense           weights in the checkpoint's own types; holds everything, after one more rounding
pack_quantized  codes, scales and whole zeros as compressed-tensors reads them
gptq            codes, scales and whole zeros as AutoGPTQ and GPTQModel read them

What follows from the method alone is refused here, with the spec; what follows from a model's shapes
is refused by `bitpress_workers.exports`, before the first block.
"""

from collections.abc import Sequence
from typing import Literal

from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig

Export = Literal["dense", "pack_quantized", "gptq"]

GPTQ_BITS = (2, 3, 4, 8)  # widths that readers of the layout agree on; 5 to 7 are bit planes to some


def check_exports(exports: Sequence[Export], method: MethodConfig) -> None:
    """Raise ValueError, with the reason, for a target named twice or one that cannot hold the method's results."""
    if len(set(exports)) != len(exports):
        raise ValueError("a target is named twice")
    for export in exports:
        if reason := _refusal(export, method):
            raise ValueError(f"{export} cannot hold this: {reason}")


def _refusal(export: Export, method: MethodConfig) -> str | None:
    if export == "dense":
        return None
    if not isinstance(method, RTNConfig | GPTQConfig):
        return (
            f"it has room for codes, scales and whole zeros, as rtn and gptq make them; results of {method.kind} "
            "have weights or statistics of other kinds"
        )
    if export == "gptq":
        if method.bits not in GPTQ_BITS:
            return f"its codes have {', '.join(map(str, GPTQ_BITS))} bits, not {method.bits}"
    elif has_scattered_groups(method):
        return (
            "groups in activation order are no neighbours, and compressed-tensors reads no index of groups any more; "
            'static_groups or order "natural" keep neighbours together'
        )
    return None


def has_scattered_groups(method: RTNConfig | GPTQConfig) -> bool:
    """Whether columns that share a grid are not neighbours in the weight."""
    return (
        isinstance(method, GPTQConfig)
        and method.order == "activation"
        and method.group_size is not None
        and not method.static_groups
    )
