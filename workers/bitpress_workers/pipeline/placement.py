"""How a job's fixed pieces are shared out among shards.

The pieces (slices of sequences, row tiles, micro-batches) are set by the job alone; a shard always
holds whole, consecutive pieces. So what is computed for a piece has the same bits on any fleet.
"""

from collections.abc import Mapping, Sequence

NUM_SLICES = 8  # Grams are summed by slice and merged in a fixed tree; also the most devices one forward can use.
MICRO_BATCH_TOKENS = 2048  # A forward's shape, and with it the bits of its GEMMs, must not depend on the fleet.
CORE_ROWS = 64  # of a tile on a CPU core
TILES = 16  # that an accelerator's tap is cut into: as much for each of 2, 4, 8 or 16
TILE_UNIT, FEWEST_ROWS = 64, 256  # GEMMs are made of blocks of 64 rows; a launch has to be worth it


def share(num_pieces: int, num_shards: int, shard: int) -> range:
    """Pieces of one shard: consecutive, sizes differing by one at most, possibly none."""
    return range(num_pieces * shard // num_shards, num_pieces * (shard + 1) // num_shards)


def cut(length: int, num_pieces: int) -> tuple[range, ...]:
    """Cut 0..length into `num_pieces` consecutive non-empty ranges, or fewer when length is smaller."""
    pieces = min(length, num_pieces)
    return tuple(share(length, pieces, piece) for piece in range(pieces))


def micro_batch_size(sequence_length: int) -> int:
    """Sequences per forward."""
    return max(1, MICRO_BATCH_TOKENS // sequence_length)


def micro_batches(sequences: range, size: int) -> list[range]:
    """Cut a range of sequences into forwards of `size` sequences; the last may be short."""
    return [range(start, min(start + size, sequences.stop)) for start in range(sequences.start, sequences.stop, size)]


def rows_of(num_rows: Mapping[str, int], row_tile: int, num_shards: int, shard: int) -> dict[str, range]:
    """Rows of each of a tap's linears that a shard solves: whole tiles, so that tiles are cut alike on every fleet.

    The linears' tiles are shared out as one list, so that small linears leave no shard idle; a linear
    of which a shard has no rows is left out.
    """
    tiles = [(name, tile) for name, count in num_rows.items() for tile in micro_batches(range(count), row_tile)]
    rows: dict[str, range] = {}
    for name, tile in (tiles[piece] for piece in share(len(tiles), num_shards, shard)):
        rows[name] = range(rows.get(name, tile).start, tile.stop)
    return rows


def tile_rows(kind: str, num_rows: int) -> int:
    """Rows of one tile of a model whose heaviest tap has so many: the same on every fleet of this kind of device."""
    if kind == "cpu":
        return CORE_ROWS
    return max(-(-num_rows // (TILES * TILE_UNIT)) * TILE_UNIT, FEWEST_ROWS)


def tiles_of(rows: range, row_tile: int) -> Sequence[range]:
    """The tiles in a shard's rows, relative to its first row."""
    return micro_batches(range(len(rows)), row_tile)
