"""Commands that compute on this machine; the work is done by `bitpress_workers`, which takes this process over."""

import importlib.util
import os
import sys

import typer

from bitpress.cli.app import MACHINE, app
from bitpress.cli.exits import USAGE
from bitpress.cli.output import say

NEEDED = ("torch", "ray")
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(rich_help_panel=MACHINE, context_settings=PASS_ON, add_help_option=False)
def up(context: typer.Context) -> None:
    """Start the whole service on this machine; up --help shows its options."""
    _become_worker("up", context.args)


@app.command(rich_help_panel=MACHINE, context_settings=PASS_ON, add_help_option=False)
def run(context: typer.Context) -> None:
    """Run one job, or a sweep, in this process, without servers: run SPEC.json --out DIR."""
    _become_worker("run", context.args)


@app.command(rich_help_panel=MACHINE, context_settings=PASS_ON, add_help_option=False)
def replay(context: typer.Context) -> None:
    """Run an artifact's job again and say whether the bytes are equal: replay MANIFEST."""
    _become_worker("replay", context.args)


@app.command(name="demo-model", rich_help_panel=MACHINE, context_settings=PASS_ON, add_help_option=False)
def demo_model(context: typer.Context) -> None:
    """Write the demo's model as a checkpoint: demo-model DIR."""
    _become_worker("demo-model", context.args)


def require_workers(command: str) -> None:
    """Leave, saying what to install, where the part of Bitpress that computes is not there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        say(f"`bitpress {command}` needs {' and '.join(missing)}: pip install 'bitpress[local]'")
        raise typer.Exit(USAGE)


def _become_worker(command: str, arguments: list[str]) -> None:
    require_workers(command)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "bitpress_workers", command, *arguments])  # noqa: S606 - no shell wanted
