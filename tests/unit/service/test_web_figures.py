"""Figures of the page: what is shaded how, where a point lies, how a number is written."""

from datetime import UTC, datetime

import pytest
from sample_report import sample_report
from service_helpers import block_record, job_spec

from bitpress.artifacts import BlockReport
from bitpress_service.web.evidence import LEVELS, block_bars, block_cells, heat_tables, totals
from bitpress_service.web.rendering import count, model_name, number, percent, size, time_element


def test_blocks_are_shaded_from_the_least_to_the_largest_error() -> None:
    cells = block_cells({index: block_record(index) for index in (1, 2, 3)}, total=5)
    assert [cell.level for cell in cells] == [None, 0, LEVELS // 2, LEVELS - 1, None]
    assert cells[0].title == "block 0: not yet published"
    assert cells[3].text == "relative error 0.003, 1003 B"


def test_bars_are_shares_of_the_largest_error() -> None:
    assert block_bars({}, 4) is None
    bars = block_bars({index: block_record(index) for index in (2, 4)}, 5)
    assert bars is not None and bars.total == 5 and bars.largest == "0.004"
    assert [(bar.index, bar.height) for bar in bars.bars] == [(2, 0.5), (4, 1.0)]
    perfect = block_bars({0: block_record(0)}, 1)
    assert perfect is not None and perfect.bars[0].height == 0.0


def test_experts_are_one_row_and_a_linear_that_is_not_there_is_none() -> None:
    first, second, third = sample_report(job_spec()).blocks
    without = BlockReport(**dict(second) | {"linears": second.linears[:1]})
    errors, bits, outliers = heat_tables((first, without, third))
    assert [row.name for row in errors.rows] == ["self_attn.q_proj", "mlp.experts.*.up_proj"]
    assert [cell.text for cell in errors.rows[1].cells] == ["0.003", "none", "0.009"], "the worst expert"
    assert [cell.text for cell in bits.rows[1].cells] == ["4.5", "none", "4.5"], "their mean"
    assert errors.rows[1].cells[1].level is None
    assert (errors.low, errors.high, errors.rows[0].mean) == ("0.001", "0.009", "0.002")
    assert [row.cells[0].level for row in outliers.rows] == [0, LEVELS - 1]
    assert not errors.is_logarithmic


def test_errors_that_are_far_apart_are_shaded_by_their_logarithm() -> None:
    block = sample_report(job_spec(), blocks=1).blocks[0]
    errors = (1e-4, 2e-3, 1e-2)
    linears = tuple(
        linear.model_copy(update={"relative_error": error, "name": f"linear{n}"})
        for n, (linear, error) in enumerate(zip(block.linears, errors, strict=True))
    )
    table = heat_tables((block.model_copy(update={"linears": linears}),))[0]
    assert table.is_logarithmic
    assert [row.cells[0].level for row in table.rows] == [0, 5, LEVELS - 1]


def test_a_model_of_equal_linears_has_one_shade() -> None:
    block = sample_report(job_spec(), blocks=1).blocks[0]
    table = heat_tables((block.model_copy(update={"linears": block.linears[:1]}),))[0]
    assert [row.cells[0].level for row in table.rows] == [0]


def test_totals_count_weights_and_linears() -> None:
    found = totals(sample_report(job_spec()))
    assert found.ratio == 4 and found.seconds == 64
    assert found.outlier_fraction == pytest.approx(0.01)
    assert found.relative_error == pytest.approx(0.004)


def test_numbers_are_written_with_their_units() -> None:
    assert [size(value) for value in (0, 1023, 1024, 1536, 5 * 2**30, 2**50)] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "5 GiB", "1.02e+03 TiB",
    ]  # fmt: skip
    assert [number(value) for value in (0.0, 0.00012345, 3.14159, 999.4, 12345.6)] == [
        "0", "0.000123", "3.14", "999", "12346",
    ]  # fmt: skip
    assert (
        percent(0.01234) == "1.23 %" and count(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    )


def test_a_model_is_called_by_its_directory_or_its_hub_id() -> None:
    uris = ("/models/opt-66b", "/models/opt-66b/", "org/model", "opt", "s3://bucket/a/b", "./here", "/")
    assert [model_name(uri) for uri in uris] == ["opt-66b", "opt-66b", "org/model", "opt", "b", "here", "/"]


def test_a_time_is_utc_until_a_script_knows_better() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert time_element(moment) == (
        '<time datetime="2026-01-02T03:04:05+00:00" title="2026-01-02 03:04:05 UTC">2026-01-02 03:04:05 UTC</time>'
    )
