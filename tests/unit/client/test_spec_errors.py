"""Every complaint about a spec points to the place in the document that it is about."""

from typing import Any

import pytest
from http_answers import SPEC

from bitpress.errors import InvalidJob
from bitpress.jobs import parse_spec


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"method": {"kind": "spqr", "damping": float("nan")}}, "/method/damping"),
        ({"method": {"kind": "spqr", "spqr": 1}}, "/method/spqr"),
        ({"method": {"kind": "spqr", "scale_bits": None}}, "/method"),
        ({"method": {"kind": "magic"}}, "/method"),
        ({"method": {"kind": "rtn"}}, "/method/bits"),
        ({"evaluation": {"datasets": ["ptb", 3]}}, "/evaluation/datasets/1"),
        ({"labels": {"a/b~c": 1}}, "/labels/a~1b~0c"),
        ({"labels": {"method": 1}}, "/labels/method"),
    ],
)
def test_a_complaint_points_into_the_document(change: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_spec(SPEC | change)
    assert [found for found, _ in caught.value.details] == [path]
