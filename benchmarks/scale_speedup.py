"""Part `speedup`: 8 blocks of hidden size 1024 on one and on two single-thread shards, which are processes.

Counted is the time in which blocks are calibrated, compressed and published; start-up is not. Runs of one
and two shards take turns, so that what else this machine does disturbs both alike.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import random_models
from scale_jobs import METHODS, block_hashes, load, make_spec, run_fresh

from bitpress_workers.ray_fleet import RaySession

HIDDEN, FFN, NUM_BLOCKS = 1024, 2816, 8
SEQUENCES, LENGTH = 64, 256  # a sixteenth of the tokens that papers calibrate with
SHARDS = (1, 2)


def measure(scratch: Path, repeats: int, num_blocks: int, methods: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method's numbers as soon as they are there."""
    model = scratch / "model"
    random_models.write_random_model(model, random_models.llama(num_blocks, HIDDEN, FFN))
    job = {"blocks": num_blocks, "hidden": HIDDEN, "ffn": FFN, "sequences": SEQUENCES, "length": LENGTH}
    with RaySession("local", max(SHARDS)) as session:
        for kind in methods:
            found = _compare(session, model, METHODS[kind], scratch / "job", repeats)
            yield kind, job | found


def _compare(session: RaySession, model: Path, method: dict[str, Any], directory: Path, repeats: int) -> dict[str, Any]:
    seconds: dict[int, list[float]] = {shards: [] for shards in SHARDS}
    loads, hashes = [], set()
    for _ in range(repeats):
        for shards in SHARDS:
            spec = make_spec(model, method, sequences=SEQUENCES, length=LENGTH, shards=shards)
            report = run_fresh(spec, directory, session.make_fleet, session.devices())
            seconds[shards].append(round(report.phases["calibrating"], 2))
            hashes.add(tuple(block_hashes(directory)))
        loads.append(load())
    assert len(hashes) == 1, "the bytes depend on the number of shards"
    ratios = [round(one / two, 2) for one, two in zip(*seconds.values(), strict=True)]
    return {
        "seconds": {str(shards): found for shards, found in seconds.items()},
        "times_faster": ratios,
        "median": median(ratios),
        "of_the_fastest": round(min(seconds[1]) / min(seconds[2]), 2),
        "load": loads,
    }


def table(kind: str, found: dict[str, Any]) -> str:
    by_shards = "; ".join(f"{shards} shards: {_list(seconds)} s" for shards, seconds in found["seconds"].items())
    return f"{kind}: {by_shards}; times faster: {_list(found['times_faster'])}"


def _list(numbers: list[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
