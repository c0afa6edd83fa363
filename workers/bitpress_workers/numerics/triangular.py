"""Symmetric and triangular matrices, in blocks of columns and mostly in place: at 36,864 columns one takes 5 GiB.

Shapes: I columns.
"""

import torch
from torch import Tensor

from bitpress_workers.numerics.precision import full_float32

# Small enough to leave out nearly half of a symmetric product, large enough for GEMMs at full speed.
COLUMNS_OF_A_BLOCK = {"cpu": 256, "cuda": 2048}


def blocks_of(num_columns: int, device: torch.device) -> list[slice]:
    """Cut columns into blocks: alike for all matrices of a size, so that bits depend on nothing else."""
    size = COLUMNS_OF_A_BLOCK[device.type]
    return [slice(start, min(start + size, num_columns)) for start in range(0, num_columns, size)]


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; takes no temporary of the tensor's size."""
    return bool(torch.isfinite(torch.stack(values.aminmax())).all())


@full_float32()
def upper_inverse_factor(reversed_II: Tensor) -> Tensor | None:
    """Return U, upper triangular, with H^-1 = U'U; None when H is not positive definite.

    reversed_II: J H J, the rows and columns of H last to first; contiguous, overwritten. From its Cholesky
    factorization J H J = L L' and the inverse of L follows U = J L^-1 J: half of the work of inverting H
    first, better conditioned, and with one more matrix in memory.
    """
    transposed_II = reversed_II.mT  # the same matrix, in LAPACK's order: its upper factor there is L here
    info = torch.empty((), dtype=torch.int32, device=reversed_II.device)
    torch.linalg.cholesky_ex(transposed_II, upper=True, out=(transposed_II, info))
    if int(info) != 0:
        return None
    _invert_lower_(reversed_II)
    upper_II = reversed_II.flip(0, 1)
    return upper_II if is_finite(upper_II) else None


def _invert_lower_(lower_II: Tensor) -> None:
    """Invert a lower triangular matrix in place: n^3 / 3 multiplications and additions, nearly all in GEMMs.

    Row by row of blocks, X_ij = -(L_ii)^-1 sum over k of L_ik X_kj, from the blocks above, which are inverted already.
    """
    blocks = blocks_of(len(lower_II), lower_II.device)
    for i, rows in enumerate(blocks):
        block = lower_II[rows, rows]
        identity = torch.eye(len(block), dtype=block.dtype, device=block.device)
        inverse = torch.linalg.solve_triangular(block, identity, upper=False)
        for columns in blocks[:i]:
            between = slice(columns.start, rows.start)
            lower_II[rows, columns] = inverse.neg() @ (lower_II[rows, between] @ lower_II[between, columns])
        lower_II[rows, rows] = inverse
