"""One linear solved by several shards, the way a fleet does it."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitpress.formats import CompressedLinear, concatenate
from bitpress.methods import MethodConfig
from bitpress_workers.methods import create
from bitpress_workers.methods.base import Method, RowSolver
from bitpress_workers.numerics.hessian import Gram


def agree(method: Method, shards: Sequence[RowSolver]) -> list[Any] | None:
    """Run all rounds of surveys; returns what was agreed on, linear by linear."""
    agreed: list[Any] | None = None
    for _ in range(method.survey_rounds):
        by_shard = [shard.survey(agreed) for shard in shards]
        by_linear = [[survey for part in parts for survey in part] for parts in zip(*by_shard, strict=True)]
        agreed = [method.agree(found, agreed and agreed[index]) for index, found in enumerate(by_linear)]
    return agreed


def solve_in_shards(weight: Tensor, hessian: Tensor, config: MethodConfig, num_shards: int) -> CompressedLinear:
    """Share tiles of at least 8 rows out evenly; shards without a tile take no part."""
    method = create(config)
    factor = method.factor(Gram.of(hessian, num_sequences=2, num_tokens=1))
    tile = method.row_tile(8)
    tiles = list(weight.split(tile))
    cuts = [len(tiles) * i // num_shards for i in range(num_shards + 1)]
    shards: list[RowSolver] = [
        method.begin([torch.cat(tiles[first:last])], factor, tile)
        for first, last in itertools.pairwise(cuts)
        if first < last
    ]
    agreed = agree(method, shards)
    return concatenate([next(shard.solve(agreed)).compressed for shard in shards])
