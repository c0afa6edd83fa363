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
from bitpress_workers.numerics.hessian import Gram

__all__ = ["compress", "create"]

ROW_TILE = 128


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
    Raises ValueError for shapes and types that do not fit and for ptq161, which trains whole blocks;
    NumericalError for values that are not finite and for a Hessian that cannot be factorized.
    """
    method = create(config)
    if isinstance(method, BlockMethod):
        raise ValueError(f"{config.kind} trains whole blocks; a linear alone has no result")
    if weight.ndim != 2 or weight.dtype != torch.float32 or not weight.numel():
        raise ValueError(f"weight: expected float32 [out, in], found {weight.dtype} {list(weight.shape)}")
    num_columns = weight.shape[1]
    if num_columns > MAX_COLUMNS:
        raise ValueError(f"weight: expected at most {MAX_COLUMNS} columns, found {num_columns}")
    if not bool(torch.isfinite(weight).all()):
        raise NumericalError("weight: not finite")
    if hessian is None:
        if not isinstance(config, RTNConfig):
            raise ValueError(f"{config.kind} needs a Hessian")
        hessian = torch.eye(num_columns, device=weight.device)
    if tuple(hessian.shape) != (num_columns, num_columns) or hessian.dtype != torch.float32:
        raise ValueError(
            f"hessian: expected float32 {[num_columns, num_columns]}, found {hessian.dtype} {list(hessian.shape)}"
        )
    factor = method.factor(Gram(hessian, num_sequences=2, num_tokens=0))
    rows = method.begin([weight], factor, method.row_tile(ROW_TILE))
    agreed = None
    for _ in range(method.survey_rounds):
        (surveys,) = rows.survey(agreed)
        agreed = [method.agree(surveys, agreed and agreed[0])]
    (solved,) = rows.solve(agreed)
    return solved.compressed
