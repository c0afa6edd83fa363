"""What a plan says of an artifact, against the artifact of a real job: to the byte."""

from math import floor
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import make_spec, run

from bitpress_workers.pipeline.outlook import outlook
from bitpress_workers.pipeline.plan import Devices

METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"kind": "rtn", "bits": 3, "group_size": 40},
    "rtn symmetric": {"kind": "rtn", "bits": 4, "symmetric": True},
    "gptq": {"kind": "gptq", "bits": 3},
    "gptq scattered groups": {"kind": "gptq", "bits": 2, "group_size": 32, "order": "activation"},
    "gptq static groups": {
        "kind": "gptq", "bits": 4, "group_size": 64, "order": "activation", "static_groups": True
    },
    "spqr": {"kind": "spqr", "outlier_threshold": None},
    "spqr plain statistics": {
        "kind": "spqr", "outlier_threshold": None, "scale_bits": None, "zero_bits": None, "order": "natural"
    },
    "spqr round zeros": {"kind": "spqr", "outlier_threshold": None, "round_zero": True, "group_size": 32},
    "spqr symmetric": {"kind": "spqr", "outlier_threshold": None, "symmetric": True},
    "ptq161": {"kind": "ptq161", "epochs": 0},
}  # fmt: skip


MODEL = Path(__file__).parents[1] / "data" / "bloom-mini"  # GELU: no column is dead
ENOUGH = Devices("cpu", 1, 2**40)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_planned_size_is_the_size_on_disk(texts: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    spec = make_spec(MODEL, texts, method, evaluation={})
    planned = outlook(spec, ENOUGH, None, "nowhere")
    report = run(spec, tmp_path)
    assert planned.bits_per_weight == report.bits_per_weight
    (shape,) = planned.blocks
    assert {shape.artifact_bytes} == {path.stat().st_size for path in tmp_path.glob("blocks/*.safetensors")}
    assert planned.artifact_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("method", "percent", "more", "said"),
    [
        ({"kind": "spqr"}, 1.0, 0, "1% of the weights are outliers"),
        ({"kind": "septq", "bits": 2, "retained_percent": 1.7}, 1.7, 1, "no two weights are equally important"),
        ({"kind": "septq", "bits": 3, "layered": True}, 1.0, 1, "no two weights are equally important"),
    ],
    ids=["spqr", "septq", "septq layered"],
)
def test_of_weights_that_are_kept_a_number_is_assumed_and_said(
    texts: Path, tmp_path: Path, method: dict[str, Any], percent: float, more: int, said: str
) -> None:
    spec = make_spec(MODEL, texts, method, evaluation={})
    planned = outlook(spec, ENOUGH, None, "nowhere")
    assert any(said in assumption for assumption in planned.assumptions)
    bits = weights = 0
    for linear in (linear for block in run(spec, tmp_path).blocks for linear in block.linears):
        size = linear.shape[0] * linear.shape[1]
        kept = round(linear.outlier_fraction * size)
        assumed = (floor if more else round)(percent * size / 100) + more
        weights += size
        bits += round(linear.bits_per_weight * size) - 32 * (kept - assumed)  # 16 for its value, 16 for its column
    assert planned.bits_per_weight == bits / weights
