"""Each method is its textbook, and what it stores is what it calibrated."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bitpress.formats import CompressedLinear
from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress, create
from bitpress_workers.methods.base import Method
from bitpress_workers.methods.gptq import GPTQ
from bitpress_workers.methods.septq import SEPTQ
from bitpress_workers.methods.spqr import SpQR
from bitpress_workers.numerics.hessian import Factor, Gram
from oracles import textbook
from oracles.examples import random_linear
from oracles.sharding import agree, solve_in_shards
from oracles.textbook import SpQROptions

ODD_SHAPES = [(48, 64), (172, 64), (64, 172), (33, 17), (1, 5), (5, 1)]


def difference(compressed: CompressedLinear, oracle: Tensor) -> float:
    """Share of weights that differ from the textbook by more than rounding."""
    return float(
        (~torch.isclose(compressed.dequantize().double(), oracle.double(), rtol=1e-4, atol=1e-7)).float().mean()
    )


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_is_the_textbook(shape: tuple[int, int], group: int | None, symmetric: bool) -> None:
    weight, _ = random_linear(*shape, seed=1)
    compressed = compress(weight, None, RTNConfig(bits=3, group_size=group, symmetric=symmetric))
    oracle = textbook.rtn(weight, 3, group, textbook.half_scale, symmetric=symmetric)
    assert torch.equal(compressed.dequantize(), oracle)


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("percent", [0, 1, 12.5])
def test_septq_is_the_textbook(shape: tuple[int, int], percent: float) -> None:
    weight, hessian = random_linear(*shape, seed=2)
    compressed = compress(weight, hessian, SEPTQConfig(bits=3, retained_percent=percent))
    oracle = textbook.septq(weight.double(), hessian.double(), 3, percent, textbook.half)
    assert compressed.header()["nnz"] == len(oracle.outliers)
    assert difference(compressed, oracle.values_RI) < 0.01


GPTQ_OPTIONS: list[dict[str, Any]] = [
    {},
    {"order": "activation"},
    {"group_size": 16},
    {"group_size": 16, "order": "activation"},
    {"group_size": 16, "stale_groups": True},
    {"group_size": 16, "static_groups": True, "order": "activation"},
    {"symmetric": True},
    {"mse_search": True, "group_size": 32},
]


@pytest.mark.parametrize("shape", [(48, 64), (172, 64), (33, 17), (1, 5), (5, 1)])
@pytest.mark.parametrize("fields", GPTQ_OPTIONS, ids=str)
def test_gptq_is_the_textbook(shape: tuple[int, int], fields: dict[str, Any]) -> None:
    weight, hessian = random_linear(*shape, seed=16, dead=(2,) if shape[1] > 2 else ())
    compressed = compress(weight, hessian, GPTQConfig(bits=3, **fields))
    oracle = textbook.gptq(
        weight.double(),
        hessian.double(),
        3,
        store=textbook.half_scale,
        act_order=fields.get("order") == "activation",
        group_size=fields.get("group_size"),
        static=fields.get("static_groups", False),
        stale_block=128 if fields.get("stale_groups") else None,
        symmetric=fields.get("symmetric", False),
        search=fields.get("mse_search", False),
    )
    assert difference(compressed, oracle.natural()) < 0.01


def test_linears_of_a_tap_are_solved_together_as_if_apart() -> None:
    """Rows of several linears side by side, none of a whole number of tiles, give each linear's own bits."""
    weights = [random_linear(rows, 48, seed=rows)[0] for rows in (40, 11, 27)]
    hessian = random_linear(4, 48, seed=17)[1]
    for config in CONFIGS:
        method = create(config)
        rows = method.begin(weights, method.factor(Gram.of(hessian, 2, 1)), method.row_tile(16))
        together = list(rows.solve(agree(method, [rows])))
        for weight, solved in zip(weights, together, strict=True):
            _, alone, agreed = begin(method, weight, hessian)
            expected = next(alone.solve(agreed)).compressed
            assert solved.compressed.header() == expected.header()
            tensors = solved.compressed.tensors()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.tensors().items())


SPQR: list[dict[str, Any]] = [
    {},
    {"outlier_threshold": 0.02},
    {"outlier_threshold": None},
    {"outlier_threshold": None, "damping": 0.01, "group_size": None},
    {"scale_bits": None, "zero_bits": None},
    {"simplified_outliers": True, "outlier_threshold": 0.05},
    {"symmetric": True},
    {"round_zero": True, "zero_bits": 2},
    {"round_zero": True},
    {"order": "natural", "statistics_group_size": 8, "bits": 2, "group_size": 8},
]


def textbook_options(fields: dict[str, Any]) -> SpQROptions:
    config = SpQRConfig(**fields)
    return SpQROptions(
        bits=config.bits,
        group_size=config.group_size,
        scale_bits=config.scale_bits,
        zero_bits=config.zero_bits,
        rows=config.statistics_group_size,
        outlier_threshold=config.outlier_threshold,
        simplified=config.simplified_outliers,
        act_order=config.order == "activation",
        damping=config.damping,
        symmetric=config.symmetric,
        round_zero=config.round_zero,
        store=textbook.half,
    )


@pytest.mark.parametrize("shape", [(48, 64), (172, 64), (64, 172)])
@pytest.mark.parametrize("fields", SPQR, ids=str)
def test_spqr_is_the_textbook(shape: tuple[int, int], fields: dict[str, Any]) -> None:
    weight, hessian = random_linear(*shape, seed=3)
    compressed = compress(weight, hessian, SpQRConfig(**fields))
    oracle = textbook.spqr(weight.double(), hessian.double(), textbook_options(fields))
    assert compressed.header().get("nnz", 0) == pytest.approx(len(oracle.outliers), abs=2)
    assert difference(compressed, oracle.natural()) < 0.02
    error, expected = (
        textbook.damped_error(weight - q.float(), hessian) for q in (compressed.dequantize(), oracle.natural())
    )
    assert error == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("shape", [(33, 17), (1, 5), (5, 1), (1, 1)])
def test_spqr_on_shapes_that_divide_by_nothing(shape: tuple[int, int]) -> None:
    weight, hessian = random_linear(*shape, seed=4)
    weight *= 100  # far from the smallest 16-bit numbers, which resolve 8-bit statistics badly
    compressed = compress(weight, hessian, SpQRConfig(bits=8, outlier_threshold=None, scale_bits=8, zero_bits=8))
    assert torch.allclose(compressed.dequantize(), weight, atol=0.01 * float(weight.abs().max()))


def begin(method: Method, weight: Tensor, hessian: Tensor) -> tuple[Factor, Any, Any]:
    """Return a factor, rows that are ready to solve, and what to solve them with."""
    factor = method.factor(Gram.of(hessian, 2, 1))
    rows = method.begin([weight], factor, method.row_tile(16))
    return factor, rows, agree(method, [rows])


@pytest.mark.parametrize(
    "method",
    [
        SpQR(SpQRConfig(outlier_threshold=0.02)),
        SpQR(SpQRConfig(scale_bits=None, zero_bits=None, bits=2)),
        SpQR(SpQRConfig(round_zero=True)),
        SpQR(SpQRConfig(symmetric=True, order="natural")),
        SEPTQ(SEPTQConfig(bits=3, retained_percent=3)),
        SEPTQ(SEPTQConfig(bits=3, retained_percent=3, layered=True)),
        GPTQ(GPTQConfig(bits=3)),
        GPTQ(GPTQConfig(bits=2, group_size=16, mse_search=True)),
        GPTQ(GPTQConfig(bits=4, group_size=24, static_groups=True, order="activation")),
        GPTQ(GPTQConfig(bits=3, group_size=16, order="activation", symmetric=True)),
        GPTQ(GPTQConfig(bits=3, order="activation", mse_search=True)),
    ],
)
def test_what_is_stored_is_what_was_calibrated(method: Method) -> None:
    weight, hessian = random_linear(50, 70, seed=5, dead=(7, 31))
    factor, rows, agreed = begin(method, weight, hessian)
    (solved,) = rows.solve(agreed)
    # The column loop leaves the calibrated values in the rows' own weights.
    calibrated = torch.empty_like(weight)
    calibrated[:, torch.arange(70) if factor.order_I is None else factor.order_I] = rows.tap_rows.weight_IR.T
    assert torch.equal(solved.compressed.dequantize(), calibrated)


CONFIGS: list[MethodConfig] = [
    RTNConfig(bits=3, group_size=16),
    SpQRConfig(),
    SpQRConfig(outlier_threshold=None, statistics_group_size=24),
    SpQRConfig(scale_bits=None, zero_bits=None, outlier_threshold=0.05),
    SEPTQConfig(bits=3),
    SEPTQConfig(bits=2, retained_percent=7.3),
    GPTQConfig(bits=3),
    GPTQConfig(bits=3, group_size=16, order="activation"),
    GPTQConfig(bits=4, group_size=16, static_groups=True, order="activation", mse_search=True),
    GPTQConfig(bits=2, group_size=32, stale_groups=True, symmetric=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_dump_json(exclude_defaults=True))
@pytest.mark.parametrize("shape", [(172, 64), (200, 150)])
def test_any_number_of_shards_gives_the_same_bits(config: MethodConfig, shape: tuple[int, int]) -> None:
    weight, hessian = random_linear(*shape, seed=6, dead=(2,))
    whole = solve_in_shards(weight, hessian, config, 1)
    for num_shards in (2, 3, 4, 8):
        parts = solve_in_shards(weight, hessian, config, num_shards)
        assert parts.header() == whole.header()
        assert all(torch.equal(tensor, parts.tensors()[name]) for name, tensor in whole.tensors().items())


def test_septq_keeps_exactly_the_most_important_and_all_ties() -> None:
    weight, hessian = random_linear(40, 50, seed=7)
    for percent in (0, 0.57, 1, 3.3, 50, 99.9):
        compressed = compress(weight, hessian, SEPTQConfig(bits=3, retained_percent=percent))
        assert compressed.header()["nnz"] == int(2000 * percent / 100 + 1e-9) + 1
    tied = compress(weight.repeat(3, 1), hessian, SEPTQConfig(bits=3, retained_percent=1))
    assert tied.header()["nnz"] == 3 * (60 // 3 + 1)


def test_septq_without_correlations_keeps_the_largest_rounding_errors() -> None:
    weight, _ = random_linear(30, 40, seed=8)
    method = SEPTQ(SEPTQConfig(bits=3, retained_percent=2))
    _, rows, agreed = begin(method, weight, 5 * torch.eye(40))
    columns = rows.solve_values(agreed)
    grid = textbook.search_grid_a(weight, 3, textbook.half_scale)
    errors = torch.stack([(grid.values(grid.codes(column)) - column).abs() for column in weight.T])
    assert torch.equal(columns.kept_IR, errors >= errors.flatten().sort(descending=True).values[24])


def test_more_retained_weights_lower_the_error() -> None:
    weight, hessian = random_linear(64, 96, seed=9)
    errors = [
        textbook.damped_error(
            weight - compress(weight, hessian, SEPTQConfig(bits=3, retained_percent=p)).dequantize(), hessian
        )
        for p in (0, 1, 5, 20)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_tiny_threshold_makes_every_weight_an_outlier() -> None:
    weight, hessian = random_linear(32, 48, seed=10)
    compressed = compress(weight, hessian, SpQRConfig(outlier_threshold=1e-30))
    assert compressed.outlier_fraction > 0.99
    assert torch.allclose(compressed.dequantize(), weight, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.model_dump_json(exclude_defaults=True))
def test_scaling_the_hessian_changes_nothing(config: MethodConfig) -> None:
    weight, hessian = random_linear(24, 40, seed=11)
    one, other = compress(weight, hessian, config), compress(weight, hessian * 64, config)
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.model_dump_json(exclude_defaults=True))
def test_weights_of_dead_columns_become_exactly_zero(config: MethodConfig) -> None:
    weight, hessian = random_linear(40, 48, seed=12, dead=(0, 17, 18, 47))
    dense = compress(weight, hessian, config).dequantize()
    assert torch.equal((dense == 0).all(dim=0).nonzero().flatten(), torch.tensor([0, 17, 18, 47]))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_dump_json(exclude_defaults=True))
def test_inputs_that_were_all_zero_and_weights_that_are(config: MethodConfig) -> None:
    weight, hessian = random_linear(40, 48, seed=13)
    weight[3] = 0
    assert compress(weight, hessian, config).dequantize()[3].abs().max() < 1e-3
    if config.kind != "rtn":
        assert not compress(weight, torch.zeros(48, 48), config).dequantize().any()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_dump_json(exclude_defaults=True))
def test_inputs_are_not_modified(config: MethodConfig) -> None:
    weight, hessian = random_linear(32, 32, seed=14, dead=(4,))
    before = weight.clone(), hessian.clone()
    compress(weight, hessian, config)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_groups_without_spread_are_counted() -> None:
    weight, hessian = random_linear(16, 32, seed=15)
    weight[2] = 0
    expected: dict[MethodConfig, int] = {
        RTNConfig(bits=3, group_size=16): 2,
        SEPTQConfig(bits=3): 1,
        GPTQConfig(bits=3): 1,
        GPTQConfig(bits=3, group_size=16): 2,
    }
    for config, count in expected.items():
        _, rows, agreed = begin(create(config), weight, hessian)
        assert next(rows.solve(agreed)).deviations["constant-groups"] == count
    _, rows, agreed = begin(SpQR(SpQRConfig(outlier_threshold=None, order="natural")), weight, torch.eye(32))
    assert next(rows.solve(agreed)).deviations["constant-groups"] == 2


def deviations(config: MethodConfig, weight: Tensor, hessian: Tensor) -> dict[str, int]:
    _, rows, agreed = begin(create(config), weight, hessian)
    return {kind: number for kind, number in next(rows.solve(agreed)).deviations.items() if number}


def test_what_does_not_fit_a_group_or_a_tile_of_statistics_is_counted() -> None:
    weight, hessian = random_linear(40, 50, seed=18)
    assert deviations(RTNConfig(bits=3, group_size=16), weight, hessian) == {"short-groups": 40}
    assert deviations(RTNConfig(bits=3, group_size=25), weight, hessian) == {}
    assert deviations(GPTQConfig(bits=3, group_size=64), weight, hessian) == {"short-groups": 40}
    assert deviations(SpQRConfig(), weight, hessian) == {"short-groups": 40, "short-statistics": 1}
    assert deviations(SpQRConfig(scale_bits=None, zero_bits=None, group_size=None), weight, hessian) == {}


def test_weights_too_alike_for_16_bits_are_counted() -> None:
    weight, hessian = random_linear(24, 32, seed=19)
    weight[5] *= 1e-9
    configs: list[MethodConfig] = [RTNConfig(bits=3), GPTQConfig(bits=3), SEPTQConfig(bits=3)]
    for config in configs:
        assert deviations(config, weight, hessian) == {"too-fine-groups": 1}
    assert deviations(SpQRConfig(statistics_group_size=2), weight, hessian)["too-fine-groups"] == 2


def test_rows_that_do_not_differ_have_no_outliers() -> None:
    weight, hessian = random_linear(1, 64, seed=20)
    for rows in (1, 32):
        alike = weight.expand(rows, -1).clone()
        assert compress(alike, hessian, SpQRConfig()).outlier_fraction == 0
        assert deviations(SpQRConfig(statistics_group_size=2), alike, hessian)["no-threshold"] == rows


def test_weights_on_their_grid_are_not_kept() -> None:
    weight, hessian = random_linear(40, 64, seed=21)
    weight[:, :60] = 0
    weight[3:] = 0
    weight[:3, 60:] = torch.tensor([-1.0, 0.5, 2.0, 0.25])
    compressed = compress(weight, hessian, SEPTQConfig(bits=2, retained_percent=5))
    assert 0 < compressed.header()["nnz"] <= 12
    assert compress(torch.zeros(8, 64), hessian, SEPTQConfig(bits=2)).header()["nnz"] == 0


def test_a_weight_on_its_grid_stays() -> None:
    """Without anything to round, nothing is lost and nothing fed back; and what was rounded rounds to itself."""
    generator = torch.Generator().manual_seed(22)
    codes = torch.randint(0, 8, (24, 40), generator=generator)
    codes[:, 0], codes[:, 1] = 0, 7  # all of the grid's range
    weight = (codes - 3).float() * 0.25
    _, hessian = random_linear(24, 40, seed=22)
    configs: list[MethodConfig] = [RTNConfig(bits=3), GPTQConfig(bits=3), SEPTQConfig(bits=3)]
    for config in configs:
        assert torch.equal(compress(weight, hessian, config).dequantize(), weight)
    rounded = compress(random_linear(24, 40, seed=23)[0], None, RTNConfig(bits=3)).dequantize()
    assert torch.equal(compress(rounded, None, RTNConfig(bits=3)).dequantize(), rounded)


def test_rtn_does_not_care_in_which_order_columns_lie() -> None:
    weight, _ = random_linear(24, 40, seed=24)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    permuted = compress(weight[:, order].contiguous(), None, RTNConfig(bits=3)).dequantize()
    assert torch.equal(permuted[:, torch.argsort(order)], compress(weight, None, RTNConfig(bits=3)).dequantize())


def test_a_last_group_of_one_column_is_solved_alike_on_any_shards() -> None:
    weight, hessian = random_linear(400, 17, seed=27)
    config = SpQRConfig(outlier_threshold=0.01, order="natural", scale_bits=None, zero_bits=None)
    whole = solve_in_shards(weight, hessian, config, 1).tensors()
    for num_shards in (2, 4):
        parts = solve_in_shards(weight, hessian, config, num_shards).tensors()
        assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RTNConfig(bits=3), 16),
        (SEPTQConfig(bits=3), 16),
        (GPTQConfig(bits=3), 16),
        (SpQRConfig(), 16),
        (SpQRConfig(statistics_group_size=12), 24),
        (SpQRConfig(statistics_group_size=64), 64),
    ],
)
def test_row_tiles_hold_whole_bytes_and_whole_statistics(config: MethodConfig, expected: int) -> None:
    assert create(config).row_tile(9) == expected
    assert create(config).row_tile(expected) == expected
