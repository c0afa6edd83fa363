"""Compressed models in the layouts of other systems; names and checks are in `bitpress.exports`."""

from collections.abc import Mapping, Sequence

from bitpress.errors import InvalidJob
from bitpress.exports import Export
from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig
from bitpress_workers.exports.base import Target
from bitpress_workers.exports.dense import Dense
from bitpress_workers.exports.directory import Piece, export_files
from bitpress_workers.exports.gptq import GPTQLayout
from bitpress_workers.exports.pack_quantized import PackQuantized

__all__ = ["Piece", "Target", "check_shapes", "create_target", "export_files"]


def create_target(name: Export, method: MethodConfig) -> Target:
    """Return the target of a spec that was checked. Raises ValueError when it has no place for the method's results."""
    if name == "dense":
        return Dense()
    if not isinstance(method, RTNConfig | GPTQConfig):
        raise ValueError(f"{name} has no place for results of {method.kind}")
    return GPTQLayout(method) if name == "gptq" else PackQuantized(method)


def check_shapes(targets: Sequence[Target], linears: Mapping[str, tuple[int, int]]) -> None:
    """Raise InvalidJob, naming target and linear, when a linear [out, in] has no place in a target."""
    for target in targets:
        for name, shape in linears.items():
            if reason := target.refusal(shape):
                message = f"{target.name} cannot hold {name} {list(shape)}: {reason}"
                raise InvalidJob(message, [("/exports", message)])
