"""The command that says what a job would need and cost."""

import subprocess
import sys
from collections.abc import Mapping
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
from bitpress.plans import (
    DevicesLike,
    PhaseCost,
    PlanAnswer,
    PlannedDevices,
    PlanReport,
    SweepPlanReport,
    plan_request,
)
from bitpress.progress import duration
from bitpress.sweeps import SweepSpec


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
    """Say what a job, or a sweep, would need and cost: memory, operations, time, size; nothing of it runs."""
    parsed = read_spec(spec.read(), assignments or [])
    like = _read_devices(devices_like.read()) if devices_like else None
    report = _plan_here(parsed, like) if local else _ask(parsed, like)
    if as_json:
        print_json(report.model_dump(mode="json"))
    elif isinstance(report, SweepPlanReport):
        _show_sweep(report)
    else:
        _show(report)


def _read_devices(text: bytes) -> DevicesLike:
    try:
        return DevicesLike.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise typer.BadParameter(f"--devices-like: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _ask(spec: JobSpec | SweepSpec, like: DevicesLike | None) -> PlanReport | SweepPlanReport:
    with Client() as client:
        return client.plan_sweep(spec, like) if isinstance(spec, SweepSpec) else client.plan(spec, like)


def _plan_here(spec: JobSpec | SweepSpec, like: DevicesLike | None) -> PlanReport | SweepPlanReport:
    require_workers("plan --local")
    command = [sys.executable, "-P", "-m", "bitpress_workers", "plan"]
    request = plan_request(spec, like).model_dump_json()
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
    _show_phases(report.phases)
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


def _show_sweep(report: SweepPlanReport) -> None:
    """What all members need together, and each by itself."""
    first, rows = report.members[0], plain_table("", "")
    for name, value in {
        "model": report.spec.model.uri,
        "devices": _devices(first.devices),
        "shards": str(first.shards),
        "members": str(len(report.members)),
        **_totals(report),
    }.items():
        rows.add_row(name, value)
    print_table(rows)
    typer.echo()
    _show_phases(report.phases)
    typer.echo()
    members = plain_table("member", "bits per weight", "after", "operations alone", "time alone", "peak memory")
    for name, member in zip(report.spec.names(), report.members, strict=True):
        peak = member.peak_device_bytes or member.peak_host_bytes
        members.add_row(
            name,
            f"{member.bits_per_weight:.3f}",
            size(member.artifact_bytes),
            _operations(member.flops),
            _time(member.seconds),
            size(peak),
        )
    print_table(members)
    for assumption in report.assumptions:
        say(f"assumed: {assumption}")


def _show_phases(phases: Mapping[str, PhaseCost]) -> None:
    table = plain_table("phase", "operations or bytes", "time")
    for name, phase in phases.items():
        table.add_row(name, size(phase.bytes) if phase.bytes else _operations(phase.flops), _time(phase.seconds))
    print_table(table)


def _summary(report: PlanReport) -> dict[str, str]:
    rows = {
        "model": report.spec.model.uri,
        "method": report.spec.method.kind,
        "devices": _devices(report.devices),
        "shards": str(report.shards),
        "bits per weight": f"{report.bits_per_weight:.3f}",
        "bytes before": size(report.checkpoint_bytes),
        **_totals(report),
    }
    if report.peak_device_bytes:
        rows["activations"] = f"in {report.activations} memory"
    return rows


def _totals(report: PlanReport | SweepPlanReport) -> dict[str, str]:
    rows = {
        "bytes after": size(report.artifact_bytes),
        "read, written": f"{size(report.bytes_read)}, {size(report.bytes_written)}",
        "peak host memory": f"{size(report.peak_host_bytes)} ({report.peak_moment})",
        "operations": _operations(report.flops),
        "time": _time(report.seconds),
    }
    if report.peak_device_bytes:
        rows["peak host memory"] = size(report.peak_host_bytes)
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
