"""Open an artifact as a working transformers model, its linears packed in memory as they are stored.

    from bitpress.loading import load
    model = load("path/to/artifact")

Importing this module registers `quant_method` "bitpress" with transformers, which has no other way
to find a quantizer. Without it, transformers must not go on with random weights in place of packed
ones: so an artifact has no `model.safetensors`, only the index `model.safetensors.index.bitpress.json`,
and `from_pretrained` raises.

An artifact directory, as far as it matters here:

  config.json     quantization_config: {"quant_method": "bitpress", "version": 1, "modules": {name: header}}
  model.safetensors.index.bitpress.json   which file holds which tensor
  skeleton.safetensors, blocks/*.safetensors   tensors; `<module>.<stored tensor>` for packed linears
  manifest.json   all files with their sizes and hashes
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitpress.artifacts import MANIFEST, Manifest
from bitpress.errors import ArtifactError
from bitpress.formats import CompressedLinear, Header, from_tensors, layout
from bitpress.formats.experts import split_experts

QUANT_METHOD = "bitpress"
VARIANT = "bitpress"
VERSION = 1


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> PreTrainedModel:
    """Load an artifact for generation.

    dtype: of activations and of all that is not packed; None: float32 on a CPU, else the checkpoint's.
    verify: compare every file with the manifest's sha256.
    Raises ArtifactError when anything is missing, left over or not as it was written.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ArtifactError(f"{path}: no artifact here, config.json is missing")
    if verify:
        check_files(path)
    if dtype is None and torch.device(device).type == "cpu":
        dtype = torch.float32
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            variant=VARIANT,
            dtype=dtype or "auto",
            device_map={"": device},
            local_files_only=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[problem]:
            raise ArtifactError(
                f"{path}: {problem.replace('_', ' ')}: {', '.join(map(str, sorted(info[problem])[:5]))}"
            )
    return model


def check_files(path: Path) -> None:
    """Compare the files of an artifact with its manifest. Raises ArtifactError."""
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no {MANIFEST}, which is written last: the artifact is not complete") from None
    except ValidationError as error:
        raise ArtifactError(f"{path / MANIFEST}: not a manifest: {error}") from error
    for file in manifest.files:
        found = path / file.name
        if not found.is_file():
            raise ArtifactError(f"{found}: missing")
        if found.stat().st_size != file.bytes:
            raise ArtifactError(f"{found}: expected {file.bytes} bytes, found {found.stat().st_size}")
        with found.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                raise ArtifactError(f"{found}: its content has changed since it was written")


class PackedLinear(nn.Module):
    """A linear that keeps its weight as it is stored and unpacks it for every call.

    Its buffers are the stored tensors; they follow the module to a device, but never change type.
    """

    bias: nn.Parameter | None

    def __init__(self, header: Header, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.header = header
        self.out_features, self.in_features = header["shape"]
        for name, (shape, dtype) in layout(header).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        self.register_parameter("bias", bias)

    def compressed(self) -> CompressedLinear:
        return from_tensors(self.header, dict(self.named_buffers(recurse=False)))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.compressed().dequantize().to(x.dtype), self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            is_bias = tensor is self.bias
            return moved if is_bias or moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_type, recurse)
        return self


class BitpressConfig(QuantizationConfigMixin):
    """What config.json says: the header of every packed linear, by module name."""

    def __init__(self, modules: dict[str, Header], version: int, **_: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.version = version
        self.modules = modules
        if version != VERSION:
            raise ArtifactError(f"expected artifact version {VERSION}, found {version}")


class BitpressQuantizer(HfQuantizer):
    """Puts a packed linear in the place of each linear that the config names, before weights are read."""

    requires_calibration = True
    quantization_config: BitpressConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        split_experts(model)
        for name, header in self.quantization_config.modules.items():
            try:
                linear = model.get_submodule(name)
            except AttributeError as error:
                raise ArtifactError(f"{name}: no such module in {type(model).__name__}") from error
            if not isinstance(linear, nn.Linear) or list(linear.weight.shape) != header.get("shape"):
                raise ArtifactError(f"{name}: expected a linear of shape {header.get('shape')}, found {linear}")
            model.set_submodule(name, PackedLinear(header, linear.bias))

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        return []  # an artifact has the model's own names; a conversion would fuse experts that were left dense

    def is_serializable(self) -> bool:
        return False  # saved anew it would get the file names that load without this module, with random weights

    @property
    def is_trainable(self) -> bool:
        return False


if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:  # registering twice, as on a reload, is an error
    register_quantization_config(QUANT_METHOD)(BitpressConfig)
    register_quantizer(QUANT_METHOD)(BitpressQuantizer)
