"""A model of which only what is outside the blocks is in memory; blocks come and go one at a time.

The model's own forward, with other modules in place of its blocks, yields what its blocks are called
with and what follows them: masks, positions, rotary embeddings, alibi, norms, projections and the head
are transformers' own for every family.

Shapes: B sequences, S tokens of a sequence, D hidden size, V vocabulary, T = B * S tokens, I inputs of a linear.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitpress.errors import CalibrationError, CheckpointError, UnsupportedModel
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.family import Tap
from bitpress_workers.models.outline import Outline

Arguments = tuple[dict[str, Any], ...]


class Skeleton(Outline):
    """A model whose blocks stay on the meta device; one instance serves one device."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Read everything outside the blocks. Raises CheckpointError, naming the tensor, UnsupportedModel."""
        super().__init__(checkpoint, dtype)
        self.device, self._dtype = torch.device(device), dtype
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}  # the one block that is being read ahead
        outer = self._take(self._checkpoint.read(self.outer_tensor_names().values()), self.outer_tensor_names())
        missing = set(self._model.state_dict()) - set(outer)
        self._model.load_state_dict(outer, strict=False, assign=True)
        self._model.tie_weights(missing_keys=missing, recompute_mapping=False)
        self._model.requires_grad_(False).to(self.device)

    @torch.no_grad()
    def enter(self, tokens_BS: Tensor) -> tuple[Tensor, Arguments]:
        """Embed tokens, int64 [B, S].

        Returns the first block's input [B, S, D] and, for each block, the other arguments it is called
        with; these depend on the tokens' shape alone. Raises CalibrationError when the model has fewer
        positions than S.
        """
        config = self._model.config
        positions = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
        if positions is not None and tokens_BS.shape[1] > positions:
            raise CalibrationError(f"sequences of {tokens_BS.shape[1]} tokens; the model has {positions} positions")
        recorders = [_Recorder(block, self.family.returns_tuple) for block in self._blocks]
        self._set_blocks(recorders)
        self._model.base_model(tokens_BS.to(self.device), use_cache=False)
        self._set_blocks([])
        return recorders[0].hidden, tuple(recorder.arguments for recorder in recorders)

    @torch.no_grad()
    def leave(self, tokens_BS: Tensor, hidden_BSD: Tensor) -> Tensor:
        """Return the logits [B, S, V] that follow from the last block's output for these tokens."""
        self._set_blocks([_Injector(hidden_BSD, self.family.returns_tuple)])
        logits_BSV: Tensor = self._model(tokens_BS.to(self.device), use_cache=False).logits
        self._set_blocks([])
        return logits_BSV

    def prefetch_block(self, index: int, pinnable_bytes: int = 0) -> None:
        """Start reading a block as it is stored; `load_block` takes it over, and what went wrong with it.

        pinnable_bytes: a block of at most this size goes into memory that a GPU copies from at full speed.
        """
        self._let_go_of_others(index)
        if index not in self._ahead:
            names = self.block_tensor_names(index).values()
            pinned = sum(self._checkpoint.tensors[name].bytes for name in names) <= pinnable_bytes
            self._ahead[index] = self._reader.submit(self._checkpoint.read, names, pinned)

    def load_block(self, index: int) -> nn.Module:
        """Read one block in the skeleton's dtype, or take it when it was read ahead.

        Raises CheckpointError when it cannot be read or a weight is not finite.
        """
        self._let_go_of_others(index)
        prefix, names = self.block_name(index) + ".", self.block_tensor_names(index)
        ahead = self._ahead.pop(index, None)
        tensors = self._take(ahead.result() if ahead else self._checkpoint.read(names.values()), names)
        block = deepcopy(self._blocks[index])
        block.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, assign=True)
        return block.eval().requires_grad_(False).to(self.device)

    def run_block(self, block: Callable[..., Any], index: int, hidden_BSD: Tensor, arguments: Arguments) -> Tensor:
        """Return the output [B, S, D] of block number `index`; `arguments` as `enter` gave them for this shape."""
        output = block(hidden_BSD, **arguments[index])
        output_BSD: Tensor = output[0] if self.family.returns_tuple else output
        return output_BSD

    def assemble(self) -> PreTrainedModel:
        """Read all blocks; returns the whole model, which the skeleton must not be used beside."""
        self._set_blocks(self.load_block(index) for index in range(self.num_blocks))
        return self._model

    def outer_tensors(self) -> dict[str, Tensor]:
        """Read everything outside the blocks as stored, under the model's names."""
        names = self.outer_tensor_names()
        stored = self._checkpoint.read(names.values())
        return {ours: stored[theirs] for ours, theirs in names.items()}

    def _let_go_of_others(self, index: int) -> None:
        """Drop another block that was read ahead: two would take the memory that was set aside for one."""
        for other in set(self._ahead) - {index}:
            wait([self._ahead[other]])
            del self._ahead[other]

    def _take(self, stored: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
        """Turn tensors as stored into the skeleton's dtype, on its device, by the model's names; empties `stored`."""
        tensors: dict[str, Tensor] = {}
        for ours, theirs in names.items():
            tensors[ours] = stored.pop(theirs).to(self.device, self._dtype)
            if not torch.isfinite(tensors[ours]).all():
                file = self._checkpoint.tensors[theirs].file
                raise CheckpointError(f"{file}: {theirs} has values that are NaN or infinite in {self._dtype}")
        return tensors


@contextmanager
def tap_inputs(block: nn.Module, taps: Sequence[Tap], sink: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the context, each forward of `block` hands each tap's input to sink(tap name, x_TI).

    All linears of a tap get the same input, so its first one is listened to. A routed tap that no token
    reaches is silent. Raises UnsupportedModel at the end when another's linear was never called as a module.
    """
    silent = {tap.name: tap.linears[0] for tap in taps if not tap.routed}

    def listener(tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def listen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            silent.pop(tap.name, None)
            sink(tap.name, inputs[0].reshape(-1, inputs[0].shape[-1]))

        return listen

    hooks = [block.get_submodule(tap.linears[0]).register_forward_pre_hook(listener(tap)) for tap in taps]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if silent:
        raise UnsupportedModel(f"the block's forward does not call {', '.join(silent.values())}")


class _Recorder(nn.Module):
    """Stands for a block: notes what it is called with and passes its input on."""

    hidden: Tensor  # [B, S, D]
    arguments: dict[str, Any]

    def __init__(self, block: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        self._names = list(signature(block.forward).parameters)[1:]
        self._returns_tuple = returns_tuple

    def forward(self, hidden_BSD: Tensor, *positional: Any, **arguments: Any) -> Tensor | tuple[Tensor]:
        self.hidden = hidden_BSD
        self.arguments = dict(zip(self._names, positional, strict=False)) | arguments
        return (hidden_BSD,) if self._returns_tuple else hidden_BSD


class _Injector(nn.Module):
    """Stands for all blocks: whatever comes in, the given hidden states go out."""

    def __init__(self, hidden_BSD: Tensor, returns_tuple: bool) -> None:
        super().__init__()
        self._hidden_BSD, self._returns_tuple = hidden_BSD, returns_tuple

    def forward(self, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (self._hidden_BSD,) if self._returns_tuple else self._hidden_BSD
