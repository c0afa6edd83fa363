"""A model run block by block, as a job runs it."""

import torch
from torch import Tensor

from bitpress_workers.models.skeleton import Skeleton

TOKENS_BS = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(1))


def forward(skeleton: Skeleton, tokens_BS: Tensor) -> Tensor:
    hidden_BSD, arguments = skeleton.enter(tokens_BS)
    for index in range(skeleton.num_blocks):
        hidden_BSD = skeleton.run_block(skeleton.load_block(index), index, hidden_BSD, arguments)
    return skeleton.leave(tokens_BS, hidden_BSD)
