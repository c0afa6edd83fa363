"""The structure of a checkpoint's model on the meta device: its blocks, and which tensor fills which weight."""

from collections.abc import Iterable
from copy import deepcopy

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitpress.errors import CheckpointError, UnsupportedModel
from bitpress.formats.experts import split_experts
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Family, Tap, family_of


class Outline:
    """A model without its weights; takes no memory to speak of.

    Checks, from the headers alone, that the checkpoint holds every tensor the model needs.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the weights to come. Raises CheckpointError or UnsupportedModel, naming what is missing."""
        config = deepcopy(checkpoint.config)  # from_config writes the dtype into it
        self.family: Family = family_of(config.model_type, config.architectures or ())
        try:
            # Weights are put on the meta device, buffers are computed: rotary frequencies are in no checkpoint.
            with init_empty_weights(include_buffers=False):
                self._model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        except Exception as error:  # whatever the values of a stranger make the library raise
            raise CheckpointError(f"{checkpoint.uri}: no model can be built from its config: {error}") from error
        split_experts(self._model)
        self._model.requires_grad_(False)
        self._checkpoint = checkpoint
        self._names = _match_names(self._model, self.family, checkpoint)
        # With its blocks taken out, what is left of the model is what comes before and after them.
        self._blocks: nn.ModuleList = self._model.get_submodule(self.family.blocks)
        self._set_blocks([])
        _check_taps(self.family, self._blocks)

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def block_name(self, index: int) -> str:
        """Name of a block inside the model, such as "model.layers.3"."""
        return f"{self.family.blocks}.{index}"

    def stages(self, index: int) -> tuple[tuple[Tap, ...], ...]:
        """A block's taps in execution order; those of one stage do not feed each other."""
        return self.family.stages(self._blocks[index])

    def taps(self, index: int) -> tuple[Tap, ...]:
        """A block's taps, stage after stage."""
        return tuple(tap for stage in self.stages(index) for tap in stage)

    def block_tensor_names(self, index: int) -> dict[str, str]:
        """A block's tensors: full name inside the model, such as "model.layers.3.mlp.up_proj.weight", to the
        checkpoint's name."""
        prefix = self.block_name(index) + "."
        return {ours: theirs for ours, theirs in self._names.items() if ours.startswith(prefix)}

    def outer_tensor_names(self) -> dict[str, str]:
        """The tensors outside the blocks, named as in `block_tensor_names`."""
        prefix = self.family.blocks + "."
        return {ours: theirs for ours, theirs in self._names.items() if not ours.startswith(prefix)}

    def _set_blocks(self, blocks: Iterable[nn.Module]) -> None:
        """Let the model's own forward run over these in place of its blocks."""
        self._model.set_submodule(self.family.blocks, nn.ModuleList(blocks))


def _match_names(model: PreTrainedModel, family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """Map the model's tensor names to the checkpoint's, which may be the family's own and lack the base model's prefix.

    A checkpoint saved from OPTModel has "decoder.layers.0..." for "model.decoder.layers.0...".
    Tensors the model does not know are left out; a tied weight may be missing.
    """
    expected, prefix = model.state_dict(), f"{model.base_model_prefix}."
    names: dict[str, str] = {}
    for ours, tensor in expected.items():
        candidates = [name for full in (ours, family.stored_name(ours)) for name in (full, full.removeprefix(prefix))]
        theirs = next((name for name in candidates if name in checkpoint.tensors), None)
        if theirs is not None:
            _check_tensor(checkpoint, theirs, tensor)
            names[ours] = theirs
    for target, source in model.all_tied_weights_keys.items():
        if target in names or source in names:
            expected = {name: tensor for name, tensor in expected.items() if name not in (target, source)}
    missing = [name for name in expected if name not in names]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{checkpoint.uri}: the tensor {missing[0]}{more} is missing")
    return names


def _check_tensor(checkpoint: Checkpoint, name: str, expected: torch.Tensor) -> None:
    info = checkpoint.tensors[name]
    if info.shape != tuple(expected.shape):
        raise CheckpointError(
            f"{info.file}: expected {name} of shape {list(expected.shape)} by config.json, found {list(info.shape)}"
        )
    if info.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise CheckpointError(f"{info.file}: expected {name} in floating point, found {info.dtype}")


def _check_taps(family: Family, blocks: nn.ModuleList) -> None:
    """Refuse a model whose blocks have other matrices than the family's description: none is left dense unsaid."""
    for index, block in enumerate(blocks):
        linears = {name for stage in family.stages(block) for tap in stage for name in tap.linears}
        matrices = {name.rpartition(".")[0] for name, tensor in block.named_parameters() if tensor.dim() > 1}
        if matrices - set(family.kept_dense) != linears:
            raise UnsupportedModel(
                f"{family.blocks}.{index}: the family {family.model_type} is described with the linears "
                f"{sorted(linears)}, found {sorted(matrices)}"
            )
