"""The page of a job with 30 blocks: how long it takes to make, how large it is."""

import sys
import time
from pathlib import Path

from machine import save

sys.path += [str(Path(__file__).parents[1] / "tests" / "support")]
from http_answers import SPEC
from sample_report import sample_report

from bitpress.artifacts import LinearReport, Report
from bitpress.jobs import parse_spec
from bitpress.report_page import to_html
from bitpress_workers.pipeline.report import to_markdown

BLOCKS, RUNS = 30, 20
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MOST_SECONDS, MOST_BYTES = 2.0, 1_000_000


def report_of_llama() -> Report:
    """30 blocks with seven linears each, as SmolLM2-135M has."""
    report = sample_report(parse_spec(SPEC), blocks=BLOCKS)
    blocks = tuple(
        block.model_copy(update={"linears": tuple(_linear(name, block.linears[0]) for name in LINEARS)})
        for block in report.blocks
    )
    return report.model_copy(update={"blocks": blocks})


def _linear(name: str, like: LinearReport) -> LinearReport:
    return like.model_copy(update={"name": f"self_attn.{name}", "outlier_fraction": 0.0123})


def main() -> None:
    report = report_of_llama()
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        page, text, data = to_html(report), to_markdown(report), report.model_dump_json(indent=1)
        seconds.append(time.perf_counter() - started)
    sizes = {"html": len(page.encode()), "markdown": len(text.encode()), "json": len(data.encode())}
    assert max(seconds) < MOST_SECONDS and max(sizes.values()) < MOST_BYTES
    numbers = {"blocks": BLOCKS, "linears": BLOCKS * len(LINEARS), "bytes": sizes}
    save("report", numbers | {"seconds_worst_of_20": round(max(seconds), 4)})


if __name__ == "__main__":
    main()
