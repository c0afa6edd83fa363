"""The Typer application that every command registers with, and the option all of them share."""

import os
from importlib.metadata import version
from typing import Annotated

import typer

from bitpress.cli.exits import MEANINGS
from bitpress.cli.ids import complete_job

EPILOG = "\n\n".join(
    (
        "The service is named by --profile or --url, else by BITPRESS_API_URL and BITPRESS_API_KEY, else by the "
        "profile of the configuration file (`bitpress login`); without any it is the one that `bitpress up` starts on "
        "this machine. NO_COLOR turns colours off.",
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
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Ask the service of this profile of the configuration file.")
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Ask the service at this address.")] = None,
) -> None:
    """Options of `bitpress` itself; what is given here stands for the environment from here on."""
    if profile is not None:
        os.environ["BITPRESS_PROFILE"] = profile
        for name in ("BITPRESS_API_URL", "BITPRESS_API_KEY"):
            os.environ.pop(name, None)
    if url is not None:
        os.environ["BITPRESS_API_URL"] = url


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else goes to stderr.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout; all else goes to stderr.")]
JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Id of a job, or its beginning.", autocompletion=complete_job)
]
JobIds = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB",
        help="Ids of jobs, or their beginnings, or that of a sweep for all its jobs; - reads them from stdin.",
        autocompletion=complete_job,
    ),
]
