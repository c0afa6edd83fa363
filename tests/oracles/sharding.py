"""One linear solved by several shards, the way a fleet does it."""

import itertools

import torch
from torch import Tensor

from bitpress.formats import CompressedLinear, concatenate
from bitpress.methods import MethodConfig
from bitpress_workers.methods import create
from bitpress_workers.methods.base import RowSolver
from bitpress_workers.numerics.hessian import Gram


def solve_in_shards(weight: Tensor, hessian: Tensor, config: MethodConfig, num_shards: int) -> CompressedLinear:
    """Share tiles of at least 8 rows out evenly; shards without a tile take no part."""
    method = create(config)
    factor = method.factor(Gram(hessian, num_sequences=2, num_tokens=1))
    tile = method.row_tile(8)
    tiles = list(weight.split(tile))
    cuts = [len(tiles) * i // num_shards for i in range(num_shards + 1)]
    shards: list[RowSolver] = [
        method.begin(torch.cat(tiles[first:last]), factor, tile)
        for first, last in itertools.pairwise(cuts)
        if first < last
    ]
    agreed = None
    for _ in range(method.survey_rounds):
        agreed = method.agree([survey for shard in shards for survey in shard.survey(agreed)], agreed)
    return concatenate([shard.solve(agreed) for shard in shards])
