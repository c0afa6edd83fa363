"""What the blocks of an unknown family look like: words that help to describe it, or say why it cannot be."""

import re
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bitpress.formats.experts import split_experts


def sketch(path: Path) -> str:
    """Name the blocks and linears of the model that a directory's config.json describes.

    The config has been checked for keys that run code. Returns "" when transformers knows no such decoder.
    """
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # whatever the values of a stranger make the library raise
        return ""
    split_experts(model)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: sum(tensor.numel() for tensor in module.parameters()) for name, module in lists.items()}
    name = max(sizes, key=sizes.__getitem__, default="")
    return _describe(name, lists[name][0]) if sizes.get(name) else ""


def _describe(blocks: str, first: nn.Module) -> str:
    modules = dict(first.named_modules())
    if any(isinstance(module, Conv1D) for module in modules.values()):
        return f"its blocks, {blocks}, hold matrices as [in, out] in Conv1D modules; only nn.Linear is compressed"
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    names = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", linear) for linear in linears)
    return f"its blocks seem to be {blocks}, the first of them with the linears {', '.join(names)}"
