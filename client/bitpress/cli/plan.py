"""The command that says what a job would need and cost."""

import subprocess
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from bitpress.cli.app import JOBS, Json, app
from bitpress.cli.jobs import read_spec
from bitpress.cli.local import require_workers
from bitpress.cli.output import plain_table, print_json, print_table, say, size
from bitpress.client import Client
from bitpress.errors import BitpressError
from bitpress.jobs import JobSpec
from bitpress.plans import DevicesLike, PlanAnswer, PlannedDevices, PlanReport, PlanRequest
from bitpress.progress import duration


@app.command(rich_help_panel=JOBS)
def plan(
    spec: Annotated[
        typer.FileBinaryRead, typer.Argument(metavar="SPEC.json", help="The job spec; - reads it from stdin.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the spec: --set method.bits=2"),
    ] = None,
    devices_like: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(metavar="DEVICES.json", help="Plan for these devices: kind, count, memory_gib and rates."),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Plan on this machine, without a service.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a job would need and cost: memory, operations, time, size; nothing of it runs."""
    parsed = read_spec(spec.read(), assignments or [])
    like = _read_devices(devices_like.read()) if devices_like else None
    if local:
        report = _plan_here(parsed, like)
    else:
        with Client() as client:
            report = client.plan(parsed, like)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _show(report)


def _read_devices(text: bytes) -> DevicesLike:
    try:
        return DevicesLike.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise typer.BadParameter(f"--devices-like: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _plan_here(spec: JobSpec, like: DevicesLike | None) -> PlanReport:
    require_workers("plan --local")
    command = [sys.executable, "-P", "-m", "bitpress_workers", "plan"]
    request = PlanRequest.of(spec, like).model_dump_json()
    done = subprocess.run(command, input=request, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BitpressError(f"the planner ended with exit code {done.returncode}")
    return PlanAnswer.model_validate_json(done.stdout).result()


def _show(report: PlanReport) -> None:
    job = plain_table("", "")
    for name, value in _summary(report).items():
        job.add_row(name, value)
    print_table(job)
    typer.echo()
    phases = plain_table("phase", "operations or bytes", "time")
    for name, phase in report.phases.items():
        phases.add_row(name, size(phase.bytes) if phase.bytes else _operations(phase.flops), _time(phase.seconds))
    print_table(phases)
    typer.echo()
    blocks = plain_table("blocks", "linears", "operations of each", "before", "after", "bits per weight", "peak memory")
    for shape in report.blocks:
        blocks.add_row(
            _numbers(shape.blocks),
            str(len(shape.linears)),
            _operations(sum(shape.flops.values())),
            size(shape.checkpoint_bytes),
            size(shape.artifact_bytes),
            f"{shape.bits_per_weight:.3f}",
            size(shape.peak_bytes),
        )
    print_table(blocks)
    for assumption in report.assumptions:
        say(f"assumed: {assumption}")


def _summary(report: PlanReport) -> dict[str, str]:
    rows = {
        "model": report.spec.model.uri,
        "method": report.spec.method.kind,
        "devices": _devices(report.devices),
        "shards": str(report.shards),
        "bits per weight": f"{report.bits_per_weight:.3f}",
        "bytes before": size(report.checkpoint_bytes),
        "bytes after": size(report.artifact_bytes),
        "read, written": f"{size(report.bytes_read)}, {size(report.bytes_written)}",
        "peak host memory": f"{size(report.peak_host_bytes)} ({report.peak_moment})",
        "operations": _operations(report.flops),
        "time": _time(report.seconds),
    }
    if report.peak_device_bytes:
        rows["peak host memory"] = size(report.peak_host_bytes)
        rows["activations"] = f"in {report.activations} memory"
        rows["peak device memory"] = f"{size(report.peak_device_bytes)} ({report.peak_moment})"
    return rows


def _devices(devices: PlannedDevices) -> str:
    return f"{devices.count} x {devices.kind}, {size(devices.memory_bytes)} " + (
        "together" if devices.kind == "cpu" else "each"
    )


def _operations(flops: int) -> str:
    return f"{flops / 1e12:.3g} T"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _numbers(blocks: tuple[int, ...]) -> str:
    """0-3, 5."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1][1:] = [block]
        else:
            runs.append([block])
    return ", ".join("-".join(map(str, run)) for run in runs)
