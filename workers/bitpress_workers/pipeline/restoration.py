"""PTQ1.61's restorative stage: an adapter on top of a compressed model, trained on text and merged.

W = W1 + alpha / rank * B A, where W1 is a linear of the compressed model, dequantized, A [rank, I]
starts at random and B [O, rank] at 0 (LoRA, arXiv 2106.09685, through peft). The merged model is a
dense checkpoint that is easier to compress than the original; it is what the second pass works on.

Here, other than everywhere else, the whole model is in the memory of one device, in float32. On a
CPU the same documents give the same bits.

Source: PTQ1.61 (arXiv 2502.13179, zjq0455/PTQ1.61), its LoRA script. It trains in bfloat16; we in float32.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from peft import LoraConfig, LoraModel
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear
from bitpress.methods import LoRAPreprocessing
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.models.checkpoint import INDEX, Checkpoint
from bitpress_workers.pipeline.block_training import reproducible_attention

SEED = 42
DROPOUT = 0.1
DOCUMENTS_PER_STEP = 2
# Published: 1000 of 10000 steps, 5 % of the number of documents.
WARM_UP_SHARE = 0.05 * DOCUMENTS_PER_STEP
# What each query, key, value, gate, up and down projection is called; attention's output stays as it is.
ADAPTED = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv"}
    | {"gate_proj", "up_proj", "gate_up_proj", "down_proj"}
)


def adapted_linears(linears: Sequence[str]) -> list[str]:
    """Those of a model's linears, by their full names, that get an adapter."""
    return [name for name in linears if name.rpartition(".")[2] in ADAPTED]


class Restoration:
    """A model with an adapter in training."""

    def __init__(
        self,
        model: PreTrainedModel,
        linears: Mapping[str, CompressedLinear],
        config: LoRAPreprocessing,
        device: torch.device,
    ) -> None:
        """Take the whole dense model, float32, and what to put into its linears, by their full names."""
        self._config, self._device = config, device
        for name, linear in linears.items():
            _linear(model, name).weight.data.copy_(linear.dequantize())
        self._names = list(linears)
        with _seeded(SEED, device):
            adapter = LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=DROPOUT,
                target_modules=adapted_linears(self._names),
            )
            self._model = LoraModel(model, adapter, "default")
        model.activation_checkpointing_enable()
        self._model.train()
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
        self._schedule = get_cosine_schedule_with_warmup(
            self._optimizer, int(WARM_UP_SHARE * config.steps), config.steps
        )

    def train(self, first_step: int, documents: Sequence[Tensor]) -> float:
        """Take one step for every two documents, int64 [S]; returns the mean loss before the steps.

        Raises NumericalError when a loss is not finite.
        """
        losses = []
        for start in range(0, len(documents), DOCUMENTS_PER_STEP):
            step = first_step + start // DOCUMENTS_PER_STEP
            with _seeded(SEED + step, self._device), reproducible_attention():
                losses += [self._add_gradient(tokens_S) for tokens_S in documents[start : start + DOCUMENTS_PER_STEP]]
            if not isfinite(losses[-1]):
                raise NumericalError(f"restoring: the loss of training step {step + 1} is {losses[-1]}")
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
        return sum(losses) / len(losses)

    def _add_gradient(self, tokens_S: Tensor) -> float:
        tokens_1S = tokens_S.to(self._device)[None]
        loss = self._model(input_ids=tokens_1S, labels=tokens_1S, use_cache=False).loss
        (loss / DOCUMENTS_PER_STEP).backward()
        return loss.item()

    def merge(self) -> dict[str, Tensor]:
        """Return every linear's weight, float32 [O, I], the adapters merged; the training is over."""
        merged = self._model.merge_and_unload()
        return {name: _linear(merged, name).weight.data for name in self._names}


def save_checkpoint(
    checkpoint: Checkpoint,
    names: Sequence[Mapping[str, str]],
    weights: Mapping[str, Tensor],
    store: ArtifactStore,
    prefix: str,
) -> None:
    """Write a checkpoint with other weights in some linears; all other tensors and files are as they were.

    names: for each file, the model's tensor names and the checkpoint's; weights: by the linear's name. prefix: what
    the keys of its files begin with. Raises StoreError.
    """
    for file in checkpoint.companion_files():
        store.put_bytes(prefix + file.name, file.read_bytes())
    weight_map: dict[str, str] = {}
    for number, of_file in enumerate(names):
        replaced = {name: weights[stem] for name in of_file if (stem := name.removesuffix(".weight")) in weights}
        kept = checkpoint.read(theirs for ours, theirs in of_file.items() if ours not in replaced)
        tensors = kept | {of_file[name]: weight_OI.cpu().contiguous() for name, weight_OI in replaced.items()}
        file_name = f"model-{number:05d}.safetensors"
        store.put_bytes(prefix + file_name, save(tensors))
        weight_map |= dict.fromkeys(tensors, file_name)
    store.put_bytes(prefix + INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}).encode())


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from this seed; what others draw from goes on as if nothing had been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear
