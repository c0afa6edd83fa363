"""What must hold for every linear, whatever its numbers: identities between methods, and of each with itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bitpress.formats import GroupedAffine, OutlierGrouped
from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress
from bitpress_workers.methods.gptq import GPTQ
from bitpress_workers.methods.septq import SEPTQ, Threshold
from bitpress_workers.methods.spqr import SpQR
from bitpress_workers.numerics.column_solver import Block, Columns, solve_columns, solve_run
from bitpress_workers.numerics.grid import Grid, RealZeroGrid, fit_integer_zero, fit_real_zero
from bitpress_workers.numerics.hessian import Gram, factorize
from bitpress_workers.numerics.leave_one_out import leave_one_out_gains
from oracles import textbook
from oracles.examples import random_linear


def test_what_the_columns_lost_is_the_damped_output_error() -> None:
    weight, hessian = random_linear(12, 50, seed=0)
    factor = factorize(Gram.of(hessian, 2, 1), damping=0.01)
    grid = fit_integer_zero(*weight.aminmax(dim=1), 3, scale_dtype=torch.float32)
    weight_IR, codes_IR = weight.T.contiguous(), torch.empty(50, 12, dtype=torch.uint8)
    columns = Columns(weight_IR, 50, lambda first, weight_gR: grid, torch.zeros(50, dtype=torch.bool), codes_IR)
    losses: list[float] = []

    def observed(block: Block, first: int, last: int, grid: Grid) -> None:
        solve_run(block, first, last, grid)
        losses.append(0.5 * float(block.errors_BR[first:last].double().square().sum()))

    solve_columns(columns, factor.upper_II, column_block=16, tiles=[12], solve_run=observed)
    damped = textbook.damp_gptq(hessian, 0.01)
    assert sum(losses) == pytest.approx(textbook.damped_error(weight - columns.weight_IR.T, damped), rel=1e-5)


@pytest.mark.parametrize("fields", [{}, {"group_size": 16}, {"symmetric": True}, {"order": "activation"}], ids=str)
def test_without_correlations_gptq_rounds_to_nearest(fields: dict[str, Any]) -> None:
    weight, _ = random_linear(20, 48, seed=1)
    rounding = {name: value for name, value in fields.items() if name != "order"}
    solved = compress(weight, 5 * torch.eye(48), GPTQConfig(bits=3, **fields))
    assert torch.equal(solved.dequantize(), compress(weight, None, RTNConfig(bits=3, **rounding)).dequantize())


def test_feeding_errors_back_pays_on_average() -> None:
    def error(config: MethodConfig) -> float:
        linears = [random_linear(24, 64, seed) for seed in range(8)]
        return sum(textbook.damped_error(w - compress(w, h, config).dequantize(), h) for w, h in linears)

    assert error(GPTQConfig(bits=3)) < 0.8 * error(RTNConfig(bits=3))
    assert error(GPTQConfig(bits=3, group_size=16)) < error(GPTQConfig(bits=3))
    assert error(GPTQConfig(bits=3, order="activation")) < error(GPTQConfig(bits=3))
    assert error(SpQRConfig()) < error(GPTQConfig(bits=3, group_size=16, order="activation"))


def test_septq_that_retains_nothing_is_gptq_with_searched_grids() -> None:
    weight, hessian = random_linear(30, 70, seed=2, dead=(4,))
    method = SEPTQ(SEPTQConfig(bits=3))
    rows = method.begin([weight], method.factor(Gram.of(hessian, 2, 1)), 16)
    infinite = Threshold(high=0x7F80, rank=0)
    values = rows.solve_values([infinite]).weight_IR.T
    gptq = compress(weight, hessian, GPTQConfig(bits=3, mse_search=True))
    # GPTQ fits a row's grid to dead columns as well, so only without them are the two the same.
    assert not torch.equal(gptq.dequantize(), values)
    weight[:, 4] = 0
    rows = method.begin([weight], method.factor(Gram.of(hessian, 2, 1)), 16)
    values = rows.solve_values([infinite]).weight_IR.T
    assert torch.equal(compress(weight, hessian, GPTQConfig(bits=3, mse_search=True)).dequantize(), values)


def test_layered_parts_add_up() -> None:
    weight, hessian = random_linear(33, 50, seed=3)
    merged = compress(weight, hessian, SEPTQConfig(bits=3, retained_percent=5))
    layered = compress(weight, hessian, SEPTQConfig(bits=3, retained_percent=5, layered=True))
    assert layered.header()["outliers"] == "add"
    assert torch.equal(layered.dequantize(), merged.dequantize())
    header, tensors = layered.header(), layered.tensors()
    codes = {name: tensor for name, tensor in tensors.items() if not name.startswith("outlier_")}
    dense = GroupedAffine({**header, "format": "grouped_affine"}, codes).dequantize()
    kept = layered.dequantize() - dense
    assert int((kept != 0).sum()) == header["nnz"]
    assert not dense[kept != 0].any()


def test_what_is_not_an_outlier_is_on_the_grid() -> None:
    """Without statistics of a second level: dense codes and outliers, laid over each other, are the weight."""
    weight, hessian = random_linear(40, 64, seed=4)
    compressed = compress(weight, hessian, SpQRConfig(outlier_threshold=0.05, scale_bits=None, zero_bits=None))
    assert isinstance(compressed, OutlierGrouped)
    tensors = compressed.tensors()
    dense = GroupedAffine(
        {**compressed.header(), "format": "grouped_affine"},
        {name: tensor for name, tensor in tensors.items() if not name.startswith("outlier_")},
    ).dequantize()
    assert 0 < int((dense != compressed.dequantize()).sum()) <= compressed.header()["nnz"]


BLOCKED: list[dict[str, Any]] = [
    {"kind": "gptq", "bits": 3},
    {"kind": "septq", "bits": 3},
    {"kind": "spqr", "group_size": None, "outlier_threshold": 0.05},
    {"kind": "gptq", "bits": 3, "group_size": 16},
]
KINDS: dict[str, type[GPTQConfig] | type[SEPTQConfig] | type[SpQRConfig]] = {
    "gptq": GPTQConfig,
    "septq": SEPTQConfig,
    "spqr": SpQRConfig,
}


@pytest.mark.parametrize("fields", BLOCKED, ids=str)
def test_the_column_block_changes_only_rounding(fields: dict[str, Any]) -> None:
    weight, hessian = random_linear(24, 160, seed=5)
    config = KINDS[fields["kind"]]
    blocks = [16, 128, 160] if fields.get("group_size") else [1, 16, 128, 160]
    dense = [
        compress(weight, hessian, config.model_validate({**fields, "column_block": block})).dequantize()
        for block in blocks
    ]
    for other in dense[1:]:
        assert float((~torch.isclose(other, dense[0], rtol=1e-3, atol=1e-6)).float().mean()) < 0.01


def test_stored_bits_of_gptq() -> None:
    weight, hessian = random_linear(64, 128, seed=6)
    for bits in (2, 3, 4):
        grouped = compress(weight, hessian, GPTQConfig(bits=bits, group_size=32))
        assert grouped.stored_bits() / weight.numel() == bits + (16 + bits) / 32
        ordered = compress(weight, hessian, GPTQConfig(bits=bits, group_size=32, order="activation"))
        assert ordered.stored_bits() / weight.numel() == bits + (16 + bits) / 32 + 16 / 64
        static = GPTQConfig(bits=bits, group_size=32, order="activation", static_groups=True)
        assert compress(weight, hessian, static).stored_bits() == grouped.stored_bits()


def test_the_linears_of_a_tap_see_the_same_hessian_whichever_was_solved_first() -> None:
    """Why propagation by linear is that by tap: what one linear of a tap becomes, no other one's input depends on."""
    weight, hessian = random_linear(16, 32, seed=7)
    method = GPTQ(GPTQConfig(bits=3, propagation="linear"))
    assert method.propagation == "linear"
    together = method.begin([weight, 2 * weight], method.factor(Gram.of(hessian, 2, 1)), 16).solve(None)
    alone: list[Tensor] = [compress(w, hessian, GPTQConfig(bits=3)).dequantize() for w in (weight, 2 * weight)]
    assert all(torch.equal(part.compressed.dequantize(), w) for part, w in zip(together, alone, strict=True))


def test_a_row_that_is_kept_whole_loses_nothing() -> None:
    weight, hessian = random_linear(6, 40, seed=8)
    factor = factorize(Gram.of(hessian, 2, 1), damping=0.01)
    grid = fit_integer_zero(*weight.aminmax(dim=1), 2, scale_dtype=torch.float32)
    weight_IR, codes_IR = weight.T.contiguous(), torch.empty(40, 6, dtype=torch.uint8)
    kept_IR = torch.zeros(40, 6, dtype=torch.bool)
    kept_IR[:, 2] = True
    dead_I = torch.zeros(40, dtype=torch.bool)
    columns = Columns(
        weight_IR, 40, lambda first, weight_gR: grid, dead_I, codes_IR, kept_IR=kept_IR, kept_dtype=torch.float32
    )
    solve_columns(columns, factor.upper_II, column_block=16, tiles=[6], solve_run=solve_run)
    assert torch.equal(columns.weight_IR[:, 2], weight[2])
    assert not torch.isclose(columns.weight_IR[:, 3], weight[3], rtol=1e-3).all()


def test_without_correlations_a_weight_gains_its_own_error() -> None:
    """Leaving out a weight that is no extreme saves just what it loses, in units of the one d that all columns have."""
    weight, _ = random_linear(50, 16, seed=9)
    factor = factorize(Gram.of(3 * torch.eye(16), 2, 1), damping=1.0)
    pivots_I = factor.upper_II.diagonal()
    assert torch.equal(pivots_I, pivots_I[:1].expand(16))
    gains_gR = leave_one_out_gains(weight.T.contiguous(), pivots_I.clone(), 3, False)
    grid = fit_real_zero(*weight.aminmax(dim=1), 3)
    errors_gR = ((grid.decode(grid.encode(weight.T)) - weight.T) / pivots_I[0]) ** 2
    inner_gR = (weight.amin(dim=1) < weight.T) & (weight.amax(dim=1) > weight.T)
    assert torch.allclose(gains_gR[inner_gR], errors_gR[inner_gR])


def test_spqr_without_outliers_or_second_level_is_the_loop_on_real_zero_grids() -> None:
    weight, hessian = random_linear(24, 64, seed=10)
    options = {"outlier_threshold": None, "scale_bits": None, "zero_bits": None, "order": "natural", "damping": 0.01}
    for group_size in (16, None):
        config = SpQRConfig.model_validate({**options, "group_size": group_size})
        factor = SpQR(config).factor(Gram.of(hessian, 2, 1))
        weight_IR, codes_IR = weight.T.contiguous(), torch.empty(64, 24, dtype=torch.uint8)

        def fit(first: int, weight_gR: Tensor) -> Grid:
            grid = fit_real_zero(*weight_gR.aminmax(dim=0), 3)
            return RealZeroGrid(grid.scale.half().float(), grid.zero.half().float(), 3)

        columns = Columns(weight_IR, group_size or 64, fit, factor.dead_I, codes_IR)
        solve_columns(columns, factor.upper_II, column_block=128, tiles=[24], solve_run=solve_run)
        assert torch.equal(compress(weight, hessian, config).dequantize(), columns.weight_IR.T)
