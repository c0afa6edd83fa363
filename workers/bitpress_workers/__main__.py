"""The worker's commands; `bitpress up`, `run` and `demo-model` end up here, in a process with torch."""

import asyncio
import json
import os
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

# Read by MKL when it is loaded: a GEMM's bits must not depend on where its operands lie in memory.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# Read by torch: large tensors in huge pages, for a forward on CPU cores spends a seventh of its time on page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import typer
from pydantic import ValidationError
from rich.console import Console

from bitpress.cli.exits import FAILED, GATE_MISSED, exit_code
from bitpress.cli.output import print_error
from bitpress.errors import BitpressError, GateFailed, InvalidJob
from bitpress.jobs import JobSpec, JobState, Progress
from bitpress.sweeps import SweepSpec, parse_submission
from bitpress_service import logs, tracing
from bitpress_service.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="spec of a job or a sweep, a JSON file; - reads standard input")],
    out: Annotated[Path, typer.Option("--out", help="directory for the artifact; an interrupted run goes on there")],
    as_json: Annotated[bool, typer.Option("--json", help="print the report as one JSON document")] = False,
) -> None:
    """Run one job, or a sweep, in this process, without servers."""
    from bitpress.progress import ProgressBars
    from bitpress_workers.local_run import run_local, run_sweep
    from bitpress_workers.pipeline.report import compared, summary

    asked, limit = _parse(sys.stdin.read() if str(spec) == "-" else _read(spec)), _settings().device_memory_gib
    with ProgressBars(console) as bars:

        def show(name: str, progress: Progress) -> None:
            bars.update(name, progress, JobState.RUNNING)

        if isinstance(asked, JobSpec):
            report = run_local(asked, out, partial(show, out.name), limit)
        else:
            comparison = run_sweep(asked, out, show, limit)
    if isinstance(asked, JobSpec):
        print(report.model_dump_json(indent=1) if as_json else summary(report))
        console.print(f"The artifact is in {out}.")
        if problem := report.problem():
            raise problem
        return
    print(comparison.model_dump_json(indent=1) if as_json else compared(comparison))
    console.print(f"The artifacts are in {out}, one directory for each member.")
    if errors := {member.error for member in comparison.members if member.error}:
        raise typer.Exit(GATE_MISSED if errors == {GateFailed.code} else FAILED)


@app.command()
def replay(
    manifest: Annotated[Path, typer.Argument(help="manifest.json of an artifact")],
    out: Annotated[Path | None, typer.Option("--out", help="keep what the second run makes here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the outcome as one JSON document")] = False,
) -> None:
    """Run an artifact's job again, in this process, and say whether the bytes are equal; exit code 1: they are not."""
    from bitpress.progress import ProgressBars
    from bitpress_workers.replay import replay as run_again

    with ExitStack() as stack:
        directory = out or Path(stack.enter_context(TemporaryDirectory(prefix="bitpress-replay-")))
        bars = stack.enter_context(ProgressBars(console))
        show = partial(bars.update, "replay", state=JobState.RUNNING)
        found = run_again(manifest, directory, show, _settings().device_memory_gib)
    print(found.model_dump_json(indent=1) if as_json else found.words())
    if not found.equal:
        raise typer.Exit(FAILED)


@app.command()
def up(
    as_json: Annotated[bool, typer.Option("--json", help="print address and key file as one JSON document")] = False,
) -> None:
    """Serve the API with an embedded Redis, a dispatcher and Ray on this machine."""
    from bitpress_workers.up import up as serve

    raise typer.Exit(serve(_settings(), as_json))


@app.command()
def dispatch() -> None:
    """Claim jobs and run them. SIGTERM lets the block in hand be finished; SIGINT, or a second SIGTERM, does not."""
    from bitpress_service.redis_jobstore import RedisJobStore
    from bitpress_service.sources import Sources
    from bitpress_workers.dispatcher import Dispatcher

    settings = _settings()
    logs.configure(settings.log_format)
    tracing.configure("dispatcher")
    redis_url, storage_url = settings.redis_url, settings.artifacts_url
    if redis_url is None:
        raise InvalidJob("BITPRESS_REDIS_URL is not set; `bitpress up` starts a Redis of its own")

    settings.make_state_dir()

    async def serve() -> None:
        stop = asyncio.Event()
        store = RedisJobStore.from_url(redis_url)
        dispatcher = Dispatcher(
            store=store,
            redis_url=redis_url,
            storage_url=storage_url,
            ray_address=os.environ.get("RAY_ADDRESS", "local"),
            logs=settings.state_dir / "logs",
            stall_seconds=settings.stall_seconds,
            sources=Sources.of(settings),
            lease_seconds=settings.lease_seconds,
            device_memory_gib=settings.device_memory_gib,
            drain_seconds=settings.drain_seconds,
        )

        def stop_now() -> None:
            dispatcher.hurry.set()
            stop.set()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: stop_now() if stop.is_set() else stop.set())
        loop.add_signal_handler(signal.SIGINT, stop_now)
        try:
            await dispatcher.run(stop)
        finally:
            await store.aclose()

    asyncio.run(serve())


@app.command(hidden=True)
def drive() -> None:
    """Run one attempt of one job; started by a dispatcher, its order on standard input."""
    from bitpress_workers.driver import main as driver_main

    raise typer.Exit(driver_main())


@app.command(hidden=True)
def devices(ray_address: Annotated[str, typer.Option(help="a cluster's address")]) -> None:
    """Print the devices of a Ray cluster, again and again; started by a dispatcher."""
    from bitpress_workers.devices import main as devices_main

    raise typer.Exit(devices_main(ray_address))


@app.command(hidden=True)
def plan(
    ray_address: Annotated[str, typer.Option(help="a cluster's address; local: this host alone")] = "local",
) -> None:
    """Make a plan: a request on standard input, its answer on standard output."""
    from bitpress_workers.planner import main as planner_main

    settings = _settings()
    settings.make_state_dir()
    raise typer.Exit(planner_main(ray_address, settings.state_dir / "rates.json", settings.device_memory_gib))


@app.command("demo-model")
def demo_model(
    directory: Path,
    as_json: Annotated[bool, typer.Option("--json", help="print the paths as one JSON document")] = False,
) -> None:
    """Write a real pretrained model (SmolLM2-135M) as a Hugging Face checkpoint, and two texts."""
    from bitpress_workers.demo_model import write_demo_model, write_demo_texts

    write_demo_model(directory)
    calibration, evaluation = write_demo_texts(directory)
    if as_json:
        print(json.dumps({"model": str(directory), "calibration": str(calibration), "evaluation": str(evaluation)}))
    console.print(f"{directory} holds the model, {calibration.name} and {evaluation.name}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidJob(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidJob(f"{path}: the job spec is not UTF-8") from error


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"BITPRESS_{'_'.join(map(str, first['loc']))}".upper()
        raise typer.BadParameter(f"{name}: {first['msg']}") from None


def _parse(text: str) -> JobSpec | SweepSpec:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidJob(f"the job spec is not JSON: {error}") from error
    return parse_submission(data)


def main() -> int:
    try:
        app(prog_name="bitpress")
    except (BitpressError, OSError) as error:
        print_error(error)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
