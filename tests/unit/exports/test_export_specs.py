"""A spec whose results a target cannot hold is refused, with the reason, when it is read."""

from typing import Any

import pytest
from http_answers import SPEC

from bitpress.errors import InvalidJob
from bitpress.jobs import parse_spec

ACTIVATION_GROUPS = {"kind": "gptq", "bits": 4, "group_size": 32, "order": "activation"}


def spec(method: dict[str, Any], *exports: str) -> dict[str, Any]:
    return SPEC | {"method": method, "exports": list(exports)}


@pytest.mark.parametrize(
    ("method", "exports", "reason"),
    [
        ({"kind": "rtn", "bits": 4}, ["dense", "dense"], "named twice"),
        ({"kind": "spqr"}, ["pack_quantized"], "pack_quantized cannot hold this: .*results of spqr"),
        ({"kind": "spqr", "outlier_threshold": None}, ["gptq"], "gptq cannot hold this: .*results of spqr"),
        ({"kind": "septq", "bits": 3}, ["dense", "gptq"], "results of septq"),
        ({"kind": "rtn", "bits": 5}, ["gptq"], "2, 3, 4, 8 bits, not 5"),
        (ACTIVATION_GROUPS, ["pack_quantized"], "groups in activation order"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(method: dict[str, Any], exports: list[str], reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason) as caught:
        parse_spec(spec(method, *exports))
    assert [path for path, _ in caught.value.details] == ["/exports"]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InvalidJob, match="'dense', 'pack_quantized' or 'gptq'"):
        parse_spec(spec({"kind": "rtn", "bits": 4}, "gguf"))


def test_a_bad_method_is_the_only_complaint() -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_spec(spec({"kind": "rtn", "bits": 99}, "gptq"))
    assert [path for path, _ in caught.value.details] == ["/method/bits"]


@pytest.mark.parametrize(
    ("method", "exports"),
    [
        ({"kind": "spqr"}, ["dense"]),
        ({"kind": "septq", "bits": 2}, ["dense"]),
        ({"kind": "rtn", "bits": 4, "group_size": 128}, ["dense", "pack_quantized", "gptq"]),
        ({"kind": "rtn", "bits": 5}, ["pack_quantized"]),
        (ACTIVATION_GROUPS, ["gptq"]),
        (ACTIVATION_GROUPS | {"static_groups": True}, ["pack_quantized"]),
        ({"kind": "gptq", "bits": 3, "order": "activation"}, ["pack_quantized", "gptq"]),
    ],
)
def test_what_a_target_holds_is_taken(method: dict[str, Any], exports: list[str]) -> None:
    assert parse_spec(spec(method, *exports)).exports == tuple(exports)
