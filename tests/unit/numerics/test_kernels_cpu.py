"""The compiled kernels of CPUs give the plain forms' bits; the grid search gives its choices."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitpress_workers.numerics import column_solver, grid, leave_one_out
from bitpress_workers.numerics.column_solver import Block
from bitpress_workers.numerics.grid import Grid, IntegerZeroGrid, RealZeroGrid
from bitpress_workers.numerics.kernels import cpu
from bitpress_workers.numerics.kernels.cpu_compile import compiled

thorough = settings(max_examples=200, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
magnitudes = st.sampled_from([1e-30, 1e-8, 1e-5, 1.0, 1000.0, 1e6])


def random(seed: int, *shape: int) -> Tensor:
    """Normal numbers of which some are large, some are 0, and some whole, which makes ties."""
    generator = torch.Generator().manual_seed(seed)
    values, kind = torch.randn(*shape, generator=generator), torch.rand(*shape, generator=generator)
    values = torch.where(kind < 0.05, values * 8, values)
    values = torch.where(kind > 0.9, values.round(), values)
    return torch.where(kind > 0.98, 0.0, values)


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, ...], magnitude: float) -> Grid:
    """Either kind, fitted to some range; some scales of the second kind are 0, as a second level may leave them."""
    bits, seed = draw(st.integers(1, 8)), draw(seeds)
    lo, hi = torch.sort(random(seed, 2, *shape), dim=0).values * magnitude
    if draw(st.booleans()):
        return grid.fit_integer_zero(lo, hi, bits, symmetric=draw(st.booleans()))
    fitted = grid.fit_real_zero(lo, hi, bits, round_zero=draw(st.booleans()))
    none = random(seed + 1, *shape) > 1.5
    return RealZeroGrid(fitted.scale.masked_fill(none, 0), fitted.zero, bits)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Block, int, int, Grid]:
    """A run anywhere in a block, whose rows lie among those of other columns, as they do in a weight."""
    rows, size, seed = draw(st.integers(1, 150)), draw(st.integers(1, 40)), draw(seeds)
    first = draw(st.integers(0, size - 1))
    last = draw(st.integers(first + 1, size))
    magnitude = draw(magnitudes)
    kept, threshold = draw(st.booleans()), draw(st.booleans())
    num_grids = draw(st.sampled_from([None, 1, 3]))
    upper_BB = random(seed, size, size).triu()
    upper_BB.diagonal().abs_().add_(0.1)
    block = Block(
        weight_BR=(random(seed + 1, size + 2, rows) * magnitude)[1:-1],
        errors_BR=torch.zeros(size, rows),
        upper_BB=upper_BB,
        dead_B=random(seed + 2, size) > 1.5,
        codes_BR=torch.zeros(size, rows, dtype=torch.uint8),
        group_B=None if num_grids is None else (random(seed + 3, size) * 100).long() % num_grids,
        threshold_R=random(seed + 4, rows).square() * magnitude**2 if threshold else None,
        kept_BR=random(seed + 5, size, rows) > 1.5 if kept or threshold else None,
        kept_dtype=draw(st.sampled_from([torch.float16, torch.float32])),
    )
    shape = (rows,) if num_grids is None else (num_grids, rows)
    return block, first, last, draw(grids(shape, magnitude))


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Zeros of either sign differ; one NaN is as good as another."""
    if a.dtype != torch.float32:
        return torch.equal(a, b)
    return torch.equal(a.nan_to_num(-7).view(torch.int32), b.nan_to_num(-7).view(torch.int32))


def same_outcome(a: Block, b: Block) -> bool:
    pairs = [(a.weight_BR, b.weight_BR), (a.errors_BR, b.errors_BR), (a.codes_BR, b.codes_BR)]
    if a.kept_BR is not None and b.kept_BR is not None:
        pairs.append((a.kept_BR, b.kept_BR))
    return all(equal_bits(x, y) for x, y in pairs)


@thorough
@given(run=runs())
def test_a_run_of_columns(run: tuple[Block, int, int, Grid]) -> None:
    block, first, last, its_grid = run
    expected = deepcopy(block)
    column_solver.solve_run(expected, first, last, its_grid)
    cpu.solve_run(block, first, last, its_grid)
    assert same_outcome(block, expected)


def test_kept_weights_are_rounded_like_float16() -> None:
    """All of float16's values, what lies halfway between two of them, and their neighbours in float32."""
    halves = torch.arange(0, 0x7C01, dtype=torch.int16).view(torch.float16).float()
    halves[-1] = 65536  # infinity comes where the next float16 would be
    middles = (halves[1:] + halves[:-1]) / 2
    weights = torch.cat([halves, middles, middles.nextafter(halves[1:]), middles.nextafter(halves[:-1])])
    weights = torch.cat([weights, -weights])[None]
    rows = weights.shape[1]
    block = Block(
        weight_BR=weights.clone(),
        errors_BR=torch.zeros(1, rows),
        upper_BB=torch.ones(1, 1),
        dead_B=torch.zeros(1, dtype=torch.bool),
        codes_BR=torch.zeros(1, rows, dtype=torch.uint8),
        group_B=None,
        threshold_R=None,
        kept_BR=torch.ones(1, rows, dtype=torch.bool),
        kept_dtype=torch.float16,
    )
    cpu.solve_run(block, 0, 1, IntegerZeroGrid(torch.ones(rows), torch.zeros(rows), 3))
    assert equal_bits(block.weight_BR, weights.half().float())


@thorough
@given(
    seed=seeds,
    size=st.integers(1, 20),
    rows=st.integers(1, 100),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    magnitude=magnitudes,
    equal=st.integers(0, 5),
)
def test_the_range_without_candidates(
    seed: int, size: int, rows: int, bits: int, symmetric: bool, magnitude: float, equal: int
) -> None:
    """`equal` columns of a group repeat its first."""
    weight_gR = random(seed, size, rows) * magnitude
    weight_gR[:equal] = weight_gR[0].clone()
    pivots_g = random(seed + 1, size).abs() + 0.1
    threshold_R = random(seed + 2, rows).square() * magnitude**2 * 0.1
    options = (weight_gR, pivots_g, bits, symmetric, threshold_R)
    for found, expected in zip(cpu.patched_range(*options), leave_one_out.patched_range(*options), strict=True):
        assert torch.equal(found, expected)


@thorough
@given(
    seed=seeds,
    tiles=st.integers(1, 8),
    size=st.integers(1, 20),
    bits=st.integers(1, 8),
    magnitude=magnitudes,
    offset=st.sampled_from([0.0, 1.0, 300.0]),
    equal=st.integers(0, 40),
    scale_dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_the_second_level(
    seed: int,
    tiles: int,
    size: int,
    bits: int,
    magnitude: float,
    offset: float,
    equal: int,
    scale_dtype: torch.dtype,
) -> None:
    """The last tile is short; `equal` numbers are the same; far from 0 their spread is not resolved."""
    values_R = (random(seed, tiles * size) + offset) * magnitude
    values_R[:equal] = values_R[0].clone()
    index_TS = torch.arange(tiles * size).clamp_(max=tiles * size - size // 2 - 1).view(tiles, size)
    values_R = values_R[: int(index_TS.max()) + 1]
    found = cpu.quantize_statistics(values_R, index_TS, bits, scale_dtype=scale_dtype)
    expected = grid.quantize_statistics(values_R, index_TS, bits, scale_dtype=scale_dtype)
    assert torch.equal(found[0], expected[0])
    for x, y in ((found[1], expected[1]), (found[2].scale, expected[2].scale), (found[2].zero, expected[2].zero)):
        assert equal_bits(x, y)


def search_both(weight_KR: Tensor, bits: int, **options: bool) -> tuple[IntegerZeroGrid, IntegerZeroGrid]:
    tiles = [weight_KR.shape[1]]
    return (
        cpu.search_integer_zero(
            weight_KR, bits, tiles=tiles, symmetric=options.get("symmetric", False), scale_dtype=torch.float16
        ),
        grid.search_integer_zero(weight_KR, bits, tiles=tiles, **options),
    )


@pytest.mark.parametrize("columns", [1, 16, 200, 1500])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_search_chooses_what_the_plain_one_does(bits: int, symmetric: bool, columns: int) -> None:
    weight_KR = torch.randn(columns, 300, generator=torch.Generator().manual_seed(bits)) * 0.02
    found, expected = search_both(weight_KR, bits, symmetric=symmetric)
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.zero, expected.zero)


def loss(weight_KR: Tensor, found: IntegerZeroGrid) -> Tensor:
    values_KR = found.decode(found.encode(weight_KR)).double()
    return (values_KR - weight_KR).abs().pow(2.4).sum(dim=0)


@thorough
@example(seed=0, columns=40, bits=3, magnitude=0.0)
@given(
    seed=seeds, columns=st.integers(1, 700), bits=st.integers(1, 8), magnitude=st.sampled_from([1e-30, 1e-6, 1.0, 1e3])
)
def test_where_the_search_chooses_otherwise_it_is_as_good(seed: int, columns: int, bits: int, magnitude: float) -> None:
    weight_KR = random(seed, columns, 3) * magnitude
    found, expected = search_both(weight_KR, bits)
    assert bool((loss(weight_KR, found) <= loss(weight_KR, expected) * (1 + 1e-5)).all())


def test_the_search_does_not_depend_on_neighbouring_rows() -> None:
    weight_KR = random(5, 333, 90)
    whole, _ = search_both(weight_KR, 3)
    for rows in (slice(0, 1), slice(7, 40), slice(89, 90)):
        part, _ = search_both(weight_KR[:, rows], 3)
        assert torch.equal(part.scale, whole.scale[rows])
        assert torch.equal(part.zero, whole.zero[rows])


def test_threads_do_not_disturb_each_other() -> None:
    def solve(seed: int) -> list[Tensor]:
        weight_IR = random(seed, 64, 500)
        upper_BB = random(seed, 64, 64).triu() / 8 + torch.eye(64)
        found = cpu.search_integer_zero(weight_IR, 3, tiles=[500], symmetric=False, scale_dtype=torch.float16)
        lo, hi = cpu.patched_range(weight_IR[:16], upper_BB.diagonal()[:16].clone(), 3, False, torch.ones(500))
        codes, dead = torch.zeros(64, 500, dtype=torch.uint8), torch.zeros(64, dtype=torch.bool)
        block = Block(weight_IR, torch.zeros(64, 500), upper_BB, dead, codes, None, None, None, torch.float16)
        cpu.solve_run(block, 0, 64, found)
        return [block.weight_BR, block.errors_BR, codes, lo, hi]

    expected = [solve(seed) for seed in range(20)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(solve, range(20)))
    assert all(
        torch.equal(x, y) for one, other in zip(found, expected, strict=True) for x, y in zip(one, other, strict=True)
    )


def test_what_cannot_be_kept_on_disk_is_compiled_anyway(caplog: pytest.LogCaptureFixture) -> None:
    """A function without a file has no place beside it, like one whose directories are read-only."""
    namespace: dict[str, Callable[[float], float]] = {}
    exec("def double(x): return 2 * x", namespace)
    assert compiled(namespace["double"])(21.0) == 42
    assert "NUMBA_CACHE_DIR" in caplog.text
