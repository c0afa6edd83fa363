"""Published numbers of each method on one deterministic linear, with statistics kept in float32 as published.

Every number here was checked against the authors' own code. Integers are compared exactly, floats at
1e-5 relative: they do not depend on rounding any further.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from bitpress.formats import statistics
from bitpress.methods import GPTQConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods.gptq import GPTQ
from bitpress_workers.methods.septq import SEPTQ
from bitpress_workers.methods.spqr import SpQR, SpQRRows
from bitpress_workers.methods.spqr_statistics import Bilevel
from bitpress_workers.numerics.column_solver import Columns
from bitpress_workers.numerics.grid import IntegerZeroGrid, fit_integer_zero, fit_real_zero, search_integer_zero
from bitpress_workers.numerics.hessian import Gram, factorize
from oracles import textbook
from oracles.examples import golden_sequences, golden_weight
from oracles.sharding import agree


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-5)


def near_printed(value: float, digits: int) -> Any:
    """The published value was printed with so many decimals."""
    return pytest.approx(value, rel=1e-5, abs=0.6 * 10**-digits)


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return golden_weight()


@pytest.fixture(scope="module")
def gram() -> Gram:
    gram = Gram.zeros(64)
    for x_TI in golden_sequences():
        gram.accumulate(x_TI, 1)
    return gram


@pytest.fixture(scope="module")
def hessian(gram: Gram) -> Tensor:
    return gram.xtx_II * (2 / gram.num_sequences)


def row_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(weight.aminmax(dim=1, keepdim=True))


def search(weight: Tensor, bits: int) -> IntegerZeroGrid:
    return search_integer_zero(weight.T.contiguous(), bits, tiles=[16], scale_dtype=torch.float32)


def test_inputs(weight: Tensor, gram: Gram, hessian: Tensor) -> None:
    assert weight[0, :4].tolist() == pytest.approx([0.084147, 0.159127, 0.017640, -0.151360], abs=1e-6)
    assert float(weight.double().sum()) == near_printed(0.037023, 6)
    assert float(weight.double().square().sum()) == near(12.163360)
    assert (gram.num_sequences, gram.num_tokens) == (4, 384)
    assert float(hessian[0, 0]) == near(95.784676)
    assert float(hessian[0, 1]) == near_printed(-2.286533, 6)
    assert float(hessian[5, 5]) == near(216.443970)
    assert float(hessian[10, 20]) == near_printed(0.624658, 5)
    assert float(hessian.trace()) == near(9974.133)
    order_I = factorize(gram, damping=1.0, order="activation").order_I
    assert order_I is not None
    assert order_I[:8].tolist() == [31, 23, 5, 7, 21, 1, 11, 17]


def test_factor(gram: Gram) -> None:
    upper = factorize(gram, damping=0.01).upper_II
    assert float(upper[0, 0]) == near(0.4249549)
    assert float(upper[0, 1]) == near_printed(0.0104577, 7)
    assert float(upper[31, 40]) == near_printed(0.0028289, 7)
    assert float(upper[63, 63]) == near_printed(0.0678422, 7)


@pytest.mark.parametrize(
    ("bits", "scale", "zero", "searched"),
    [(2, 0.1296240, 1, 0.1088842), (3, 0.0555531, 3, 0.0483312), (4, 0.0259248, 7, 0.0251471)],
)
def test_row_grids(weight: Tensor, bits: int, scale: float, zero: int, searched: float) -> None:
    grid = fit_integer_zero(*row_range(weight), bits, scale_dtype=torch.float32)
    assert (float(grid.scale[0]), float(grid.zero[0])) == (near(scale), zero)
    assert float(search(weight, bits).scale[0]) == near(searched)


@pytest.mark.parametrize(
    ("bits", "output_error", "weight_error", "searched_error"),
    [(2, 126.9058, 1.367965, 1.179884), (3, 20.5223, 0.258342, 0.232350), (4, 4.38749, 0.0564252, 0.0473220)],
)
def test_rtn(
    weight: Tensor, hessian: Tensor, bits: int, output_error: float, weight_error: float, searched_error: float
) -> None:
    grid = fit_integer_zero(*row_range(weight), bits, scale_dtype=torch.float32)
    difference = weight - grid.decode(grid.encode(weight))
    assert textbook.damped_error(difference, hessian) == near(output_error)
    assert float(difference.square().sum()) == near(weight_error)
    searched = search(weight, bits)
    assert float((weight.T - searched.decode(searched.encode(weight.T))).square().sum()) == near(searched_error)


def run_gptq(weight: Tensor, gram: Gram, **fields: Any) -> tuple[Columns, float]:
    """Return the solved columns and the loss."""
    method = GPTQ(GPTQConfig(**fields), stored_dtype=torch.float32)
    factor = method.factor(gram)
    columns = method.begin([weight], factor, row_tile=16).solve_values()
    values_RI = torch.empty_like(weight)
    order = torch.arange(weight.shape[1]) if factor.order_I is None else factor.order_I
    values_RI[:, order] = columns.weight_IR.T
    hessian = gram.xtx_II * (2 / gram.num_sequences)
    return columns, textbook.damped_error(weight - values_RI, textbook.damp_gptq(hessian, 0.01))


GPTQ_ROW = {
    2: [2, 2, 1, 0, 0, 1, 2, 2, 2, 0, 0, 0, 1, 3, 2, 1],
    3: [5, 6, 3, 0, 0, 2, 5, 5, 4, 2, 1, 1, 4, 7, 5, 2],
    4: [10, 13, 8, 1, 1, 6, 11, 12, 10, 4, 3, 3, 9, 15, 11, 6],
}


@pytest.mark.parametrize(
    ("bits", "loss", "undamped", "codes"),
    [(2, 48.2642, 45.3456, 1478), (3, 7.14795, 6.57517, 3518), (4, 1.53961, 1.42642, 7612)],
)
def test_gptq(weight: Tensor, gram: Gram, hessian: Tensor, bits: int, loss: float, undamped: float, codes: int) -> None:
    columns, found = run_gptq(weight, gram, bits=bits)
    assert int(columns.codes_IR.sum()) == codes
    assert columns.codes_IR[:16, 0].tolist() == GPTQ_ROW[bits]
    difference = weight - columns.weight_IR.T
    assert found == near(loss)
    assert textbook.damped_error(difference, hessian) == near(undamped)


@pytest.mark.parametrize(
    ("bits", "activation", "stale", "fresh", "static"),
    [
        (2, 40.6084, 40.1967, 44.9923, 34.7356),
        (3, 5.68907, 6.53984, 6.56080, 5.68617),
        (4, 1.20007, 1.30529, 1.17268, 1.25459),
    ],
)
def test_gptq_with_order_and_groups(
    weight: Tensor, gram: Gram, bits: int, activation: float, stale: float, fresh: float, static: float
) -> None:
    def loss(**fields: Any) -> float:
        return run_gptq(weight, gram, bits=bits, **fields)[1]

    assert loss(order="activation") == near(activation)
    assert loss(group_size=16, stale_groups=True) == near(stale)
    assert loss(group_size=16) == near(fresh)
    assert loss(group_size=16, column_block=16) == near(fresh)
    assert loss(group_size=16, static_groups=True, order="activation") == near(static)


def run_septq(weight: Tensor, gram: Gram, bits: int, percent: float) -> tuple[Columns, float]:
    """Return the solved columns and the loss."""
    method = SEPTQ(SEPTQConfig(bits=bits, retained_percent=percent), stored_dtype=torch.float32)
    rows = method.begin([weight], method.factor(gram), row_tile=16)
    columns = rows.solve_values(agree(method, [rows]))
    damped = textbook.damp_gptq(gram.xtx_II * 0.5, 0.01)
    return columns, textbook.damped_error(weight - columns.weight_IR.T, damped)


@pytest.mark.parametrize(
    ("bits", "percent", "retained", "loss"),
    [
        (2, 0, 1, 40.1130), (3, 0, 1, 7.19357), (4, 0, 1, 1.57728),
        (2, 1, 11, 37.3800), (3, 1, 11, 6.89062), (4, 1, 11, 1.46134),
        (2, 5, 52, 28.6854), (3, 5, 52, 5.44610), (4, 5, 52, 1.18160),
    ],
)  # fmt: skip
def test_septq_loss(weight: Tensor, gram: Gram, bits: int, percent: float, retained: int, loss: float) -> None:
    columns, found = run_septq(weight, gram, bits, percent)
    assert columns.kept_IR is not None
    assert int(columns.kept_IR.sum()) == retained
    assert columns.kept_IR[61, 13] or percent > 0  # the largest of all
    assert found == near(loss)


SEPTQ_MASKS = {
    2: "0,48 3,51 6,47 6,51 6,59 9,47 10,61 10,63 11,57 13,61 14,57",
    3: "0,48 1,51 3,55 4,47 4,61 6,55 7,49 9,47 12,57 13,61 15,53",
    4: "0,53 1,47 2,53 3,59 4,63 7,47 9,47 11,54 12,55 13,59 13,61",
}


@pytest.mark.parametrize(("bits", "codes"), [(2, 1465), (3, 3477), (4, 7530)])
def test_septq_mask_and_codes(weight: Tensor, gram: Gram, bits: int, codes: int) -> None:
    columns, _ = run_septq(weight, gram, bits, 1)
    assert columns.kept_IR is not None
    mask = " ".join(f"{i},{j}" for i, j in columns.kept_IR.T.nonzero().tolist())
    assert mask == SEPTQ_MASKS[bits]
    assert int(columns.codes_IR[~columns.kept_IR].sum()) == codes
    if bits == 2:
        assert float(columns.weight_IR[48, 0]) == near(-0.21900982)
        assert float(weight[0, 48]) == near(-0.19075052)


def run_spqr(weight: Tensor, gram: Gram, **fields: Any) -> tuple[SpQRRows, Columns, float, float | None]:
    """Return the rows, their solved columns, the undamped output error and T."""
    method = SpQR(SpQRConfig(**fields), stored_dtype=torch.float32)
    factor = method.factor(gram)
    rows = method.begin([weight], factor, row_tile=16)
    thresholds = agree(method, [rows])
    columns = rows.solve_values(thresholds)
    values_RI = torch.empty_like(weight)
    values_RI[:, torch.arange(64) if factor.order_I is None else factor.order_I] = columns.weight_IR.T
    error = textbook.damped_error(weight - values_RI, gram.xtx_II * 0.5)
    return rows, columns, error, thresholds and thresholds[0]


def test_spqr_in_activation_order(weight: Tensor, gram: Gram) -> None:
    _, columns, error, threshold = run_spqr(weight, gram)
    assert threshold == near(0.6446802)
    assert columns.kept_IR is not None
    assert sorted(columns.kept_IR.T.nonzero().tolist()) == [[12, 31], [13, 5]]
    assert int(columns.codes_IR.sum()) == 3565
    assert columns.codes_IR[:16, 0].tolist() == [6, 0, 3, 6, 4, 7, 2, 2, 2, 4, 4, 3, 6, 1, 4, 1]
    assert error == near(6.47945)


def test_spqr_second_level(weight: Tensor, gram: Gram) -> None:
    rows = run_spqr(weight, gram)[0]
    scale, zero = rows.scale, rows.zero
    assert isinstance(scale, Bilevel)
    assert isinstance(zero, Bilevel)
    assert scale.codes[0].tolist() == [3, 2, 6, 0, 7, 6, 2, 6, 4, 7, 7, 1, 3, 3, 5, 7]
    assert zero.codes[0].tolist() == [6, 3, 3, 6, 5, 6, 7, 2, 7, 5, 3, 5, 2, 0, 2, 5]
    assert float(scale.scales[0]) == near_printed(0.001618, 6)
    assert float(scale.zeros[0]) == near(-26.849133)
    assert float(zero.scales[0]) == near_printed(0.126416, 6)
    assert float(zero.zeros[0]) == near(-23.072792)


@pytest.mark.parametrize(
    ("fields", "outliers", "error"),
    [
        ({}, 2, 8.21794),
        ({"outlier_threshold": 0.05}, 65, 5.35727),
        ({"simplified_outliers": True}, 0, 8.71738),
        ({"outlier_threshold": None, "damping": 0.01}, 0, 5.68181),
        ({"outlier_threshold": None, "damping": 0.01, "scale_bits": None, "zero_bits": None}, 0, 5.19743),
        (
            {"outlier_threshold": None, "damping": 0.01, "scale_bits": None, "zero_bits": None, "group_size": None},
            0,
            6.47018,
        ),
    ],
)
def test_spqr_in_natural_order(weight: Tensor, gram: Gram, fields: dict[str, Any], outliers: int, error: float) -> None:
    _, columns, found, threshold = run_spqr(weight, gram, order="natural", **fields)
    assert (0 if columns.kept_IR is None else int(columns.kept_IR.sum())) == outliers
    assert found == near(error)
    expected = {0.2: 0.6580123, 0.05: 0.1645031, None: None}[fields.get("outlier_threshold", 0.2)]
    assert threshold is None if expected is None else threshold == near(expected)
    if fields == {"outlier_threshold": 0.05}:
        assert int(columns.codes_IR.sum()) == 3597


def test_bits_of_the_golden_spqr_linear(weight: Tensor, gram: Gram) -> None:
    method = SpQR(SpQRConfig())
    rows = method.begin([weight], method.factor(gram), row_tile=16)
    compressed = next(rows.solve(agree(method, [rows]))).compressed
    nominal = 3 + 6 / 16 + 64 / 256 + 32 * 2 / 1024
    assert nominal == 3.6875
    row_offsets, order = 32 * 17 / 1024, 16 * 64 / 1024
    assert compressed.stored_bits() / 1024 == nominal + row_offsets + order


def test_hand_integer_zero() -> None:
    def both(row: list[float], **options: bool) -> tuple[float, float, list[float], list[float]]:
        w = torch.tensor([row])
        grid = fit_integer_zero(*row_range(w), 2, **options)
        codes = grid.encode(w)
        return float(grid.scale), float(grid.zero), codes[0].tolist(), grid.decode(codes)[0].tolist()

    assert both([-1, 0.5, 2]) == (1, 1, [0, 1, 3], [-1, 0, 2])
    assert both([-1, 1.5, 2])[3] == [-1, 2, 2]
    assert both([1, 2, 3]) == (1, 0, [1, 2, 3], [1, 2, 3])
    scale, zero, _, values = both([0, 0, 0])
    assert (scale, zero, values) == (pytest.approx(2 / 3, rel=1e-3), 2, [0, 0, 0])
    scale, _, _, values = both([-3, 1, 2, 1.5], symmetric=True)
    assert (scale, values) == (2, [-4, 0, 2, 2])
    # The published grid clips this row to [0, 1, 1, 1].
    assert both([0, 1, 2, 3], symmetric=True)[3] == [0, 0, 2, 2]


def test_hand_real_zero() -> None:
    w = torch.tensor([1.0, 2.0, 3.0])
    grid = fit_real_zero(w.min(), w.max(), 2)
    assert (float(grid.scale), float(grid.zero)) == (near(2 / 3), near(-1.5))
    assert grid.encode(w).tolist() == [0, 2, 3]
    assert grid.decode(grid.encode(w)).tolist() == near_list([1, 2.3333333, 3])
    # The published grid decodes all three to 0.667.
    symmetric = fit_real_zero(w.min(), w.max(), 2, symmetric=True)
    assert symmetric.decode(symmetric.encode(w)).tolist() == near_list([0, 2, 2])


def near_list(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-5, abs=1e-6)


def test_hand_two_by_two() -> None:
    gram = Gram.of(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), num_sequences=2, num_tokens=0)
    factor = factorize(gram, damping=0.01)
    assert factor.upper_II.flatten().tolist() == near_list([0.8097895, -0.4008859, 0, 0.7035975])
    inverse = factor.upper_II.T @ factor.upper_II
    assert inverse.flatten().tolist() == near_list([0.655759, -0.324633, -0.324633, 0.655759])

    def solve(rows: list[list[float]], bits: int) -> tuple[list[float], float]:
        columns, loss = run_gptq(torch.tensor(rows), gram, bits=bits)
        return columns.weight_IR.T.flatten().tolist(), loss

    values, loss = solve([[0.4, 0.3]], 2)
    assert (values, loss) == (near_list([0.4, 0.2666667]), near_printed(0.00112222, 8))
    values, loss = solve([[0.45, -0.3], [0.1, 0.55]], 2)
    assert (values, loss) == (near_list([0.5, -0.25, 0.1833333, 0.55]), near_printed(0.01456389, 8))
    values, loss = solve([[0.45, -0.3], [0.1, 0.55]], 3)
    assert (values, loss) == (near_list([0.4285714, -0.3214286, 0.0785714, 0.55]), near_printed(0.00185051, 8))


def test_hand_second_level_decoding() -> None:
    """One 16 x 16 tile: codes (3k + 5l) mod 8 on quantized scales and zeros, decoded as the published kernel does."""
    k, column = torch.arange(16)[:, None], torch.arange(16)[None]
    codes = (3 * k + 5 * column) % 8

    def number(codes_R: Tensor, scale: float, zero: float) -> Tensor:
        part = statistics.bilevel(codes_R.to(torch.uint8), torch.tensor([[scale]]), torch.tensor([[zero]]), 3, 16)
        tensors = {f"x{suffix}": tensor for suffix, tensor in part[1].items()}
        values = statistics.decode(part[0], "x", tensors, 16, 1)
        assert isinstance(values, Tensor)
        return values

    scale, zero = number((3 * k + 1) % 8, 0.0078125, -1.5), number((5 * k + 2) % 8, 0.75, -0.25)
    values = scale * (codes - zero)
    assert values[0, :4].tolist() == pytest.approx([-0.03296, 0.06470, 0.006104, 0.10376], abs=5e-5)
    assert values[15, -3:].tolist() == pytest.approx([0.12085, -0.05493, -0.2307], abs=5e-5)
    assert float(values.sum()) == pytest.approx(2.75, rel=1e-3)
