"""Small inputs: the published deterministic example, and random linears."""

import math

import torch
from torch import Tensor


def golden_weight() -> Tensor:
    """W_ij = 0.1 sin(1 + 64 i + j) (1 + ((7i + 3j) mod 5) / 4), float32 [16, 64]."""
    rows = [[0.1 * math.sin(1 + i * 64 + j) * (1 + ((7 * i + 3 * j) % 5) / 4) for j in range(64)] for i in range(16)]
    return torch.tensor(rows, dtype=torch.float64).float()


def golden_sequences() -> list[Tensor]:
    """X_k[t, j] = sin(t (1 + 0.37 j) + k) (1 + 0.5 (j^2 mod 4)), k = 0..3, float32 [96, 64]."""
    t, j = torch.arange(96, dtype=torch.float64)[:, None], torch.arange(64, dtype=torch.float64)[None]
    return [(torch.sin(t * (1 + 0.37 * j) + k) * (1 + 0.5 * (j * j % 4))).float() for k in range(4)]


def random_linear(rows: int, columns: int, seed: int, *, dead: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] with a few large entries, and the X'X of correlated inputs, both float32."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    large = torch.rand(rows, columns, generator=generator) < 0.01
    weight = torch.where(large, weight * 8, weight)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    x_TI = torch.randn(3 * columns, columns, generator=generator) @ mixing
    x_TI *= torch.rand(columns, generator=generator).mul(3).exp()
    x_TI[:, list(dead)] = 0
    return weight, x_TI.T @ x_TI
