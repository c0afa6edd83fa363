"""Whatever the shape and the parameters: finite values, kept through storage, the same from any shards."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitpress.formats import from_tensors
from bitpress.methods import GPTQConfig, MethodConfig, RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_workers.methods import compress
from oracles.examples import random_linear
from oracles.sharding import solve_in_shards

bits = st.integers(2, 8)
second_level = st.one_of(st.none(), st.tuples(st.integers(1, 8), st.integers(1, 8)))
percents = st.sampled_from([0, 0.1, 1, 33.3, 99])


@st.composite
def rtn(draw: st.DrawFn) -> MethodConfig:
    group = draw(st.one_of(st.none(), st.integers(2, 30)))
    return RTNConfig(bits=draw(bits), group_size=group, symmetric=draw(st.booleans()))


@st.composite
def septq(draw: st.DrawFn) -> MethodConfig:
    block = draw(st.integers(1, 40))
    return SEPTQConfig(bits=draw(bits), retained_percent=draw(percents), column_block=block)


@st.composite
def gptq(draw: st.DrawFn) -> MethodConfig:
    group = draw(st.sampled_from([None, 2, 4, 16]))
    return GPTQConfig(
        bits=draw(bits),
        group_size=group,
        symmetric=draw(st.booleans()),
        static_groups=group is not None and draw(st.booleans()),
        order=draw(st.sampled_from(["natural", "activation"])),
        column_block=draw(st.sampled_from([16, 128])),
        mse_search=draw(st.booleans()),
    )


@st.composite
def spqr(draw: st.DrawFn) -> MethodConfig:
    scale_bits, zero_bits = draw(second_level) or (None, None)
    return SpQRConfig(
        bits=draw(bits),
        group_size=draw(st.sampled_from([None, 2, 4, 16])),
        scale_bits=scale_bits,
        zero_bits=zero_bits,
        statistics_group_size=draw(st.integers(2, 20)),
        outlier_threshold=draw(st.sampled_from([None, 1e-9, 0.1, 5.0])),
        simplified_outliers=draw(st.booleans()),
        order=draw(st.sampled_from(["natural", "activation"])),
        damping=draw(st.sampled_from([0.01, 1.0])),
        symmetric=draw(st.booleans()),
        round_zero=draw(st.booleans()),
        column_block=draw(st.sampled_from([16, 128])),
    )


@st.composite
def linears(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Shapes from 1 x 1, some rows, groups of columns or single entries without spread, dead columns, any magnitude."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    dead = tuple(j for j in draw(st.sets(st.integers(0, 39), max_size=3)) if j < columns)
    weight, hessian = random_linear(rows, columns, draw(st.integers(0, 9)), dead=dead)
    weight[: draw(st.integers(0, 3))] = draw(st.sampled_from([0.0, 1.0, -0.3]))
    weight[:, : draw(st.integers(0, 20))] *= draw(st.sampled_from([0.0, 1.0, 1e-6]))
    return weight * draw(st.sampled_from([1e-8, 1.0, 1000.0])), hessian


@settings(max_examples=160, deadline=None, derandomize=True)
@given(linear=linears(), config=st.one_of(rtn(), gptq(), septq(), spqr()))
def test_any_linear(linear: tuple[Tensor, Tensor], config: MethodConfig) -> None:
    weight, hessian = linear
    compressed = compress(weight, hessian, config)
    dense = compressed.dequantize()
    assert dense.shape == weight.shape
    assert bool(torch.isfinite(dense).all())
    assert float(dense.abs().max()) <= 3 * float(weight.abs().max()) + 1e-4
    if config.kind != "rtn":
        assert not dense[:, hessian.diagonal() == 0].any()
    assert torch.equal(from_tensors(compressed.header(), compressed.tensors()).dequantize(), dense)
    whole, parts = (solve_in_shards(weight, hessian, config, num_shards) for num_shards in (1, 3))
    assert parts.header() == whole.header()
    assert all(torch.equal(tensor, parts.tensors()[name]) for name, tensor in whole.tensors().items())
