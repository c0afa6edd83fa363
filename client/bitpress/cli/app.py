"""The Typer application that every command registers with, and the option all of them share."""

from importlib.metadata import version
from typing import Annotated

import typer

from bitpress.cli.exits import MEANINGS

EPILOG = "\n\n".join(
    (
        "Environment: BITPRESS_API_URL and BITPRESS_API_KEY name the service and the key; without them the "
        "service that `bitpress up` starts on this machine is used. NO_COLOR turns colours off.",
        "\b\nExit codes:\n" + "\n".join(f"{code:>5}  {meaning}" for code, meaning in MEANINGS.items()),
    )
)

JOBS, RESULTS, MACHINE = "Jobs", "Results", "On this machine"

app = typer.Typer(
    name="bitpress",
    help="Compress large language models after training, on your own machines.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bitpress {version('bitpress')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of `bitpress` itself."""


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else goes to stderr.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout; all else goes to stderr.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB", help="Ids of one or more jobs.")]
