"""The command that says what is wrong with an installation and how to mend it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from bitpress.cli.app import MACHINE, Json, app
from bitpress.cli.exits import FAILED, USAGE
from bitpress.cli.output import plain_table, print_json, print_table, say
from bitpress.config import find_service, state_directory
from bitpress.doctor import Check, examine

SERVICE_PARTS = ("fastapi", "obstore", "redis")
MARKS = {"ok": "ok", "warning": "look", "failed": "FAILED", "skipped": "-"}


@app.command(rich_help_panel=MACHINE)
def doctor(
    take_in: Annotated[
        bool,
        typer.Option(
            "--import", help="Redis was lost: make jobs again of the storage's artifacts; on the service's machine."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is wrong with the service, and with this machine if it runs there; and how to mend it."""
    if take_in:
        _take_in(as_json)
        return
    checks = [*examine(find_service()), *_look_here()]
    if as_json:
        print_json({"ok": not _ailing(checks), "checks": [check.model_dump() for check in checks]})
    else:
        _show(checks)
    raise typer.Exit(FAILED if _ailing(checks) else 0)


def _ailing(checks: list[Check]) -> bool:
    return any(check.state == "failed" for check in checks)


def _show(checks: list[Check]) -> None:
    table = plain_table("", "", "")
    for check in checks:
        table.add_row(MARKS[check.state], check.name, check.found)
        if check.advice:
            table.add_row("", "", f"-> {check.advice}")
    print_table(table)


def _look_here() -> Iterator[Check]:
    """The service's own machine, when this is it."""
    if not (os.environ.get("BITPRESS_REDIS_URL") or (state_directory() / "redis").is_dir()):
        found = "no service was set up on it; its own machine shows Redis, storage and disk as well"
        yield Check(name="this machine", state="skipped", found=found)
    elif missing := _missing():
        found = f"{', '.join(missing)} are not installed here: pip install 'bitpress[service]'"
        yield Check(name="this machine", state="skipped", found=found)
    else:
        done = _service("doctor")
        if done.returncode:
            mend = "Correct the settings that are named; README.md lists them."
            yield Check.bad("this machine", done.stderr.strip(), mend)
        else:
            yield from (Check.model_validate(check) for check in json.loads(done.stdout))


def _take_in(as_json: bool) -> None:
    if missing := _missing():
        say(f"`bitpress doctor --import` needs {', '.join(missing)}: pip install 'bitpress[service]'")
        raise typer.Exit(USAGE)
    done = _service("import")
    if done.returncode:
        say(done.stderr.strip())
        raise typer.Exit(FAILED)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    counts = Counter(each["state"] for each in found)
    if as_json:
        print_json({"jobs": found})
    else:
        table = plain_table("job", "tenant", "", "")
        for each in found:
            table.add_row(each["job_id"], each["tenant"], each["state"], each["why"])
        print_table(table)
        say(", ".join(f"{count} {state}" for state, count in counts.items()) or "the storage holds no job")
    raise typer.Exit(FAILED if counts["damaged"] else 0)


def _missing() -> list[str]:
    return [name for name in SERVICE_PARTS if importlib.util.find_spec(name) is None]


def _service(command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-P", "-m", "bitpress_service", command]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)
