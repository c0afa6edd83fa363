"""Compressed models in the layouts of other systems; names and checks are in `bitpress.exports`."""

from collections.abc import Iterator, Sequence

from bitpress.errors import InvalidJob
from bitpress.exports import Export
from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig
from bitpress_workers.exports.base import Target
from bitpress_workers.exports.dense import Dense
from bitpress_workers.exports.directory import Piece, export_files
from bitpress_workers.exports.gptq import GPTQLayout
from bitpress_workers.exports.pack_quantized import PackQuantized
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline

__all__ = ["Piece", "Target", "check_shapes", "create_target", "export_files"]


def create_target(name: Export, method: MethodConfig) -> Target:
    """Return the target of a spec that was checked. Raises ValueError when it has no place for the method's results."""
    if name == "dense":
        return Dense()
    if not isinstance(method, RTNConfig | GPTQConfig):
        raise ValueError(f"{name} has no place for results of {method.kind}")
    return GPTQLayout(method) if name == "gptq" else PackQuantized(method)


def check_shapes(targets: Sequence[Target], outline: Outline, checkpoint: Checkpoint) -> None:
    """Raise InvalidJob, naming target and linear, when a linear of the model has no place in a target."""
    for name, shape, routed in _linears(outline, checkpoint):
        for target in targets:
            if reason := target.refusal(shape, routed):
                message = f"{target.name} cannot hold {name} {list(shape)}: {reason}"
                raise InvalidJob(message, [("/exports", message)])


def _linears(outline: Outline, checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Every linear that is compressed: its name, its shape [out, in], and whether it belongs to an expert."""
    for index in range(outline.num_blocks):
        stored = outline.block_tensor_names(index)
        for name, routed in ((name, tap.routed) for tap in outline.taps(index) for name in tap.linears):
            full = f"{outline.block_name(index)}.{name}"
            yield full, checkpoint.tensors[stored[f"{full}.weight"]].shape, routed
