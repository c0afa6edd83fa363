"""Part `hashes`: one sha256 for every block, whatever the number of shards, the fleet, and where a job was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import random_models
from scale_jobs import METHODS, block_hashes, make_spec, run_fresh, run_job

from bitpress_workers.pipeline.fleet import local_devices, make_local_fleet
from bitpress_workers.ray_fleet import RaySession

SHARDS = (1, 2, 3, 4, 8)
KILLED, RESUMED = 2, 3  # shards of the run that is killed, and of the one that goes on
NUM_BLOCKS = 3


def measure(scratch: Path, methods: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method's hashes as soon as they are there."""
    model = scratch / "model"
    random_models.write_random_model(model, random_models.opt(NUM_BLOCKS, 256, 1024))
    with RaySession("local", max(SHARDS)) as session:
        makers = {"local": make_local_fleet, "ray": session.make_fleet}
        for kind in methods:
            found = {}
            for fleet, maker in makers.items():
                for shards in SHARDS:
                    spec = make_spec(model, METHODS[kind], sequences=8, length=64, shards=shards)
                    run_fresh(spec, scratch / "job", maker, local_devices())
                    found[f"{fleet}, {shards} shards"] = block_hashes(scratch / "job")
            found[f"killed with {KILLED} shards, resumed with {RESUMED}"] = _resumed(scratch, model, kind)
            yield kind, {"equal": len({tuple(hashes) for hashes in found.values()}) == 1, "sha256": found}


def _resumed(scratch: Path, model: Path, kind: str) -> list[str]:
    """Kill a process as soon as it has published a block, and go on in this one."""
    directory = scratch / "killed"
    subprocess.run(["rm", "-rf", str(directory)], check=True)
    process = subprocess.Popen([sys.executable, __file__, str(model), kind, str(directory)])
    while not list(directory.glob("blocks/*.json")):
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(directory.glob("blocks/*.json")))
    assert done < NUM_BLOCKS, "all blocks were published before the run was killed"
    spec = make_spec(model, METHODS[kind], sequences=8, length=64, shards=RESUMED)
    run_job(spec, directory, make_local_fleet, local_devices())
    return block_hashes(directory)


def table(kind: str, found: dict[str, Any]) -> str:
    """The first eight digits of every block's hash."""
    lines = [f"| {kind} | " + " | ".join(f"block {index}" for index in range(NUM_BLOCKS)) + " |"]
    lines.append("| --- |" + " --- |" * NUM_BLOCKS)
    for fleet, hashes in found["sha256"].items():
        lines.append(f"| {fleet} | " + " | ".join(sha256[:8] for sha256 in hashes) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    model, kind, directory = sys.argv[1:]
    run_job(
        make_spec(Path(model), METHODS[kind], sequences=8, length=64, shards=KILLED),
        Path(directory),
        make_local_fleet,
        local_devices(),
    )
