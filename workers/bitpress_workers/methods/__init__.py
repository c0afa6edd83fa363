"""The compression methods, and the entry for one linear."""

import torch
from torch import Tensor

from bitpress.errors import NumericalError
from bitpress.formats import CompressedLinear
from bitpress.formats.base import MAX_COLUMNS
from bitpress.methods import GPTQConfig, MethodConfig, PTQ161Config, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.block_base import BlockMethod
from bitpress_workers.methods.gptq import GPTQ
from bitpress_workers.methods.ptq161 import PTQ161
from bitpress_workers.methods.rtn import RTN
from bitpress_workers.methods.septq import SEPTQ
from bitpress_workers.methods.spqr import SpQR
from bitpress_workers.numerics.hessian import Factor, Gram, unfactored

__all__ = ["compress", "create"]

ROW_TILE = 128
SYMMETRY = 1e-4  # of the largest entry: what rounding may set a Hessian and its transpose apart


def create(config: MethodConfig) -> Method | BlockMethod:
    """Return the method that a config describes: one that solves rows, or one that trains blocks."""
    match config:
        case RTNConfig():
            return RTN(config)
        case GPTQConfig():
            return GPTQ(config)
        case SpQRConfig():
            return SpQR(config)
        case SEPTQConfig():
            return SEPTQ(config)
        case PTQ161Config():
            return PTQ161(config)


def compress(weight: Tensor, hessian: Tensor | None, config: MethodConfig) -> CompressedLinear:
    """Compress one linear.

    weight: float32 [out, in], not modified.
    hessian: float32 [in, in] of its inputs, X'X times any positive number; only RTN takes None.
    Raises ValueError for shapes and types that do not fit, for a Hessian that is not symmetric and for
    ptq161, which trains whole blocks; NumericalError for values that are not finite and for a Hessian
    that the config's damping does not make positive definite.
    """
    method = create(config)
    if isinstance(method, BlockMethod):
        raise ValueError(f"{config.kind} trains whole blocks; a linear alone has no result")
    _check_weight(weight)
    factor = unfactored(weight.shape[1], weight.device) if hessian is None else _factor(method, weight, hessian)
    if hessian is None and not isinstance(config, RTNConfig):
        raise ValueError(f"{config.kind} needs a Hessian")
    wanted = getattr(config, "damping", None)
    if factor.damping_used != wanted:
        raise NumericalError(
            f"the Hessian is not positive definite with damping {wanted:g}; {factor.damping_used:g} does"
        )
    rows = method.begin([weight], factor, method.row_tile(ROW_TILE))
    agreed = None
    for _ in range(method.survey_rounds):
        (surveys,) = rows.survey(agreed)
        agreed = [method.agree(surveys, agreed and agreed[0])]
    (solved,) = rows.solve(agreed)
    return solved.compressed


def _check_weight(weight: Tensor) -> None:
    if weight.ndim != 2 or weight.dtype != torch.float32 or not weight.numel():
        raise ValueError(f"weight: expected float32 [out, in], found {weight.dtype} {list(weight.shape)}")
    if weight.shape[1] > MAX_COLUMNS:
        raise ValueError(f"weight: expected at most {MAX_COLUMNS} columns, found {weight.shape[1]}")
    if not bool(torch.isfinite(weight).all()):
        raise NumericalError("weight: not finite")


def _factor(method: Method, weight: Tensor, hessian: Tensor) -> Factor:
    expected = [weight.shape[1]] * 2
    if list(hessian.shape) != expected or hessian.dtype != torch.float32:
        raise ValueError(f"hessian: expected float32 {expected}, found {hessian.dtype} {list(hessian.shape)}")
    factor = method.factor(Gram.of(hessian, num_sequences=2, num_tokens=0))
    if not float((hessian - hessian.T).abs().max()) <= SYMMETRY * float(hessian.abs().max()):
        raise ValueError("hessian: not symmetric")
    return factor
