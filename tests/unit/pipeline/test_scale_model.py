"""What the scale model makes of plans: minutes over a link, and the seconds that more devices do not take away."""

from pathlib import Path

import pytest
from header_only import opt_66b, write_headers
from scale_model import GPU_BYTES, STATED, plan_for, times

from bitpress.jobs import parse_spec
from bitpress_workers.pipeline.plan import Devices


def test_minutes_and_what_does_not_shrink(tmp_path: Path) -> None:
    model = write_headers(opt_66b(2), tmp_path)
    method = {"kind": "septq", "bits": 3}
    spec = parse_spec({"model": {"uri": str(model)}, "method": method, "calibration": {"dataset": "c4"}})
    one, sixteen = (plan_for(spec, Devices("cuda", gpus, GPU_BYTES), gpus, STATED) for gpus in (1, 16))
    assert times(one, one, 100) == {
        "minutes": round((one.seconds or 0) / 60, 2),
        "seconds_that_do_not_shrink": {},
        "exchanged_bytes": 0,
    }
    exchange = sixteen.phases["exchange"]
    slow, fast = times(sixteen, one, 10), times(sixteen, one, 100)
    at_one_gigabit = exchange.seconds or 0
    assert 60 * (slow["minutes"] - fast["minutes"]) == pytest.approx(at_one_gigabit * (1 / 10 - 1 / 100), abs=1)
    assert slow["exchanged_bytes"] == exchange.bytes
    stays = fast["seconds_that_do_not_shrink"]
    # Sixteen devices share eight slices; a stage of SEPTQ has one tap, whose factor one device makes.
    assert stays["hessian"] == pytest.approx((one.phases["hessian"].seconds or 0) / 16, abs=0.1)
    assert stays["factor"] == pytest.approx((one.phases["factor"].seconds or 0) * 15 / 16, abs=0.1)
    # Each of sixteen devices has as many tiles of rows.
    assert set(stays) == {"forward", "hessian", "factor", "exchange"}
