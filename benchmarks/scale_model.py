"""How long jobs over 66B models take on many GPUs, by the plan's own cost model; and how well it predicts this machine.

python benchmarks/scale_model.py

Rates of a GPU are stated, with their source, as long as `bench_scale.py block --device cuda` has not measured any.
What is predicted here is one and two shards on this machine's cores, against what `bench_scale.py speedup` measured.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import random_models
import torch
from machine import load_results, save_part
from scale_jobs import METHODS, make_spec

from bitpress.jobs import JobSpec, parse_spec
from bitpress.plans import PlanReport, Rates
from bitpress_workers.pipeline.exchange import ProcessGroup, join_store, open_store
from bitpress_workers.pipeline.fleet import local_devices
from bitpress_workers.pipeline.outlook import outlook
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.rates import probe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from header_only import llama_65b, opt_66b, write_headers

# NVIDIA H200 SXM data sheet: 67 TFLOP/s in float32, 989 in bfloat16 without sparsity, 141 GB, NVLink 900 GB/s both
# ways together. Products are taken at 60 % of that; the rate of column loops is assumed, no source states one.
STATED = Rates(gemm_gflops=0.6 * 67e3, half_gemm_gflops=0.6 * 989e3, loop_gflops=1000)
GPU_BYTES = 141 * 10**9
LINKS = {"NVLink": 3600, "100 Gbit": 100, "25 Gbit": 25, "10 Gbit": 10}  # gigabits a second, one way
GPUS = (1, 2, 4, 8, 16, 64)
LINK_PROBE_BYTES = 2**26


MODELS = {"OPT-66B, SEPTQ": (opt_66b, "septq"), "LLaMA-65B, SpQR": (llama_65b, "spqr")}


def predict(rates: Rates) -> dict[str, Any]:
    """By model, link and number of GPUs: minutes, and what of them does not shrink."""
    found: dict[str, Any] = {}
    for name, (config, kind) in MODELS.items():
        with tempfile.TemporaryDirectory() as directory:
            model = write_headers(config(), Path(directory))
            spec = parse_spec({"model": {"uri": str(model)}, "method": METHODS[kind], "calibration": {"dataset": "c4"}})
            plans = {gpus: plan_for(spec, Devices("cuda", gpus, GPU_BYTES), gpus, rates) for gpus in GPUS}
        found[name] = {
            link: {str(gpus): times(plan, plans[1], gigabits) for gpus, plan in plans.items()}
            for link, gigabits in LINKS.items()
        }
    return found


def plan_for(spec: JobSpec, devices: Devices, shards: int, rates: Rates, gigabits: float = 1.0) -> PlanReport:
    """Plan for one size; seconds of exchanges are those of a link of so many gigabits."""
    linked = rates.model_copy(update={"link_gigabits": gigabits})
    return outlook(spec.model_copy(update={"devices": shards}), devices, linked, "statement")


def times(plan: PlanReport, alone: PlanReport, gigabits: float) -> dict[str, Any]:
    """Minutes over a link, and seconds of each phase beyond its share of one device's. plan: over one gigabit."""
    seconds = {name: phase.seconds or 0.0 for name, phase in plan.phases.items()}
    seconds["exchange"] = seconds.get("exchange", 0.0) / gigabits
    ideal = {name: (phase.seconds or 0.0) / plan.shards for name, phase in alone.phases.items()}
    beyond = {name: round(of - ideal.get(name, 0.0), 1) for name, of in seconds.items()}
    return {
        "minutes": round(sum(seconds.values()) / 60, 2),
        "seconds_that_do_not_shrink": {name: of for name, of in beyond.items() if of > 0},
        "exchanged_bytes": plan.phases["exchange"].bytes if "exchange" in plan.phases else 0,
    }


def check(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Predict the jobs that `bench_scale.py speedup` measured, from this machine's rates."""
    rates, gigabits = probe("cpu"), loopback_gigabits()
    found: dict[str, Any] = {"rates": rates.model_dump(), "link_gigabits": round(gigabits, 1)}
    for kind, job in measured.items():
        with tempfile.TemporaryDirectory() as scratch:
            config = random_models.llama(job["blocks"], job["hidden"], job["ffn"])
            model = write_headers(config, Path(scratch))
            spec = make_spec(model, METHODS[kind], sequences=job["sequences"], length=job["length"], shards=1)
            plans = [plan_for(spec, local_devices(), shards, rates, gigabits) for shards in (1, 2)]
        one, two = (plan.seconds or 0.0 for plan in plans)
        found[kind] = {
            "predicted_seconds": [round(one, 2), round(two, 2)],
            "measured_seconds": [min(seconds) for seconds in job["seconds"].values()],
            "predicted_times_faster": round(one / two, 2),
            "measured_times_faster": job["median"],
        }
    return found


def loopback_gigabits() -> float:
    """What two shards of this host exchange in a second, the best of three."""
    store, port = open_store("127.0.0.1", 2)
    other = join_store("127.0.0.1", port, 2)
    device, payload = torch.device("cpu"), torch.ones(LINK_PROBE_BYTES, dtype=torch.uint8)
    with ThreadPoolExecutor(2) as threads:
        groups = list(
            threads.map(lambda rank: ProcessGroup((store, other)[rank], rank, 2, device, "127.0.0.1"), (0, 1))
        )

        def exchange() -> float:
            started = time.perf_counter()
            list(threads.map(lambda rank: groups[rank].broadcast(payload, 0), (0, 1)))
            return time.perf_counter() - started

        return 8 * LINK_PROBE_BYTES / min(exchange() for _ in range(3)) / 1e9


def table(predicted: dict[str, Any]) -> str:
    lines = ["| model, link | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |", "| --- |" + " ---: |" * len(GPUS)]
    for name, links in predicted.items():
        for link, sizes in links.items():
            lines.append(f"| {name}, {link} | " + " | ".join(str(of["minutes"]) for of in sizes.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    results = load_results("scale")
    rates, source = rates_of_a_gpu(list(results.get("block", {}).values()))
    predicted = predict(rates)
    save_part("scale", "model", {"66B": {"rates": rates.model_dump(), "rates_from": source, "predicted": predicted}})
    print(table(predicted))
    if "speedup" in results:
        found = check(results["speedup"])
        save_part("scale", "model", {"this machine": found})
        print(json.dumps(found, indent=1))


def rates_of_a_gpu(blocks: Sequence[dict[str, Any]]) -> tuple[Rates, str]:
    """Those that were measured on a GPU, else those stated above."""
    for block in blocks:
        if block["rates"]["half_gemm_gflops"]:
            return Rates.model_validate(block["rates"]), block["device"]
    return STATED, "NVIDIA H200 SXM data sheet, products at 60 %, column loops assumed"


if __name__ == "__main__":
    main()
