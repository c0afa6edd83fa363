"""A model is streamed: its length costs no memory."""

import pytest
from bench_memory import measure

pytestmark = pytest.mark.slow


def test_peak_memory_does_not_grow_with_the_number_of_blocks() -> None:
    # 24 more blocks are 340 MB in float16 and 680 MB in float32, about as much as the whole process.
    peaks = [measure(num_blocks, {"kind": "rtn", "bits": 4}) for num_blocks in (8, 32)]
    assert peaks[1] < 1.1 * peaks[0], peaks
