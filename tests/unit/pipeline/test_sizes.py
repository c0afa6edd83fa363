"""What cannot be stored is refused from the headers, before anything is computed."""

from pathlib import Path

import pytest
from header_only import write_headers
from transformers import AutoConfig

from bitpress.errors import UnsupportedModel
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.pipeline.sizes import model_sizes


def test_more_columns_than_16_bits_name_are_refused_by_name(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "opt", hidden_size=64, word_embed_proj_dim=64, ffn_dim=65600, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=100, max_position_embeddings=64,
    )  # fmt: skip
    checkpoint = Checkpoint.open(str(write_headers(config, tmp_path)))
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.fc2: expected at most 65536 columns, found 65600"):
        model_sizes(Outline(checkpoint), checkpoint)
