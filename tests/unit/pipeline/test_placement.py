"""Pieces are cut alike whatever the number of shards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitpress_workers.pipeline.placement import (
    cut,
    micro_batch_size,
    micro_batches,
    rows_of,
    share,
    tile_rows,
    tiles_of,
)

SIZES = st.integers(1, 500)


@given(SIZES, st.integers(1, 20))
def test_shares_cover_all_pieces_in_order_and_are_even(num_pieces: int, num_shards: int) -> None:
    shares = [share(num_pieces, num_shards, shard) for shard in range(num_shards)]
    assert [piece for part in shares for piece in part] == list(range(num_pieces))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(SIZES, st.integers(1, 20))
def test_cut_gives_no_empty_piece(length: int, num_pieces: int) -> None:
    pieces = cut(length, num_pieces)
    assert [n for piece in pieces for n in piece] == list(range(length))
    assert all(pieces) and len(pieces) == min(length, num_pieces)


@given(st.integers(1, 2000), st.integers(1, 128), st.integers(1, 9))
def test_row_tiles_are_the_same_on_every_fleet(num_rows: int, row_tile: int, num_shards: int) -> None:
    counts = {"q_proj": num_rows, "k_proj": 7}

    def tiles(shards: int) -> list[tuple[str, int, int]]:
        found = []
        for shard in range(shards):
            for name, rows in rows_of(counts, row_tile, shards, shard).items():
                found += [(name, rows.start + tile.start, rows.start + tile.stop) for tile in tiles_of(rows, row_tile)]
        return found

    assert tiles(num_shards) == tiles(1)
    assert [tile for tile in tiles(1) if tile[0] == "q_proj"][-1][2] == num_rows
    assert tiles(1)[-1][2] == 7


def test_micro_batches_stay_inside_their_range() -> None:
    assert micro_batches(range(3, 8), 2) == [range(3, 5), range(5, 7), range(7, 8)]
    assert micro_batch_size(2048) == 1
    assert micro_batch_size(512) == 4
    assert micro_batch_size(4096) == 1


@pytest.mark.parametrize(("num_rows", "expected"), [(9216, 576), (8192, 512), (12288, 768), (5120, 320), (2048, 256)])
def test_an_accelerators_tiles_are_sixteenths_of_the_heaviest_tap(num_rows: int, expected: int) -> None:
    assert tile_rows("cuda", num_rows) == expected
    assert tile_rows("cpu", num_rows) == 64


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_tiles_of_the_largest_models_keep_up_to_sixteen_accelerators_busy(shards: int) -> None:
    """Rows of the shard with most, beside an equal part: LLaMA-65B's gate and up have 43 tiles each, all else 16 n."""

    def excess(counts: dict[str, int], tile: int) -> float:
        most = max(sum(map(len, rows_of(counts, tile, shards, shard).values())) for shard in range(shards))
        return most * shards / sum(counts.values())

    opt, llama = tile_rows("cuda", 9216), tile_rows("cuda", 8192)
    for counts in ({"q": 9216, "k": 9216, "v": 9216}, {"out": 9216}, {"fc1": 36864}, {"fc2": 9216}):
        assert excess(counts, opt) == 1
    for counts in ({"q": 8192, "k": 8192, "v": 8192}, {"o": 8192}, {"down": 8192}):
        assert excess(counts, llama) == 1
    assert excess({"gate": 22016, "up": 22016}, llama) < 1.12
