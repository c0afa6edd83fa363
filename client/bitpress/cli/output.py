"""What commands print: results on stdout, everything else on stderr."""

import json
import os
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bitpress.advice import ADVICE
from bitpress.errors import BitpressError

PIPE_COLUMNS = 200  # a table in a pipe is not cut to the 80 columns rich assumes there
_IDS = ("job", "key", "webhook")  # headings


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, ensure_ascii=False, allow_nan=False))


def print_table(table: Table) -> None:
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=PIPE_COLUMNS if piped else None, highlight=False, markup=False).print(table)


def plain_table(*columns: str) -> Table:
    """A table without lines; columns of ids are never broken."""
    table = Table(box=None, pad_edge=False, show_header=any(columns), padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _IDS)
    return table


def say(message: str) -> None:
    """A remark for people, on stderr."""
    typer.echo(message, err=True)


def print_error(error: BitpressError | OSError) -> None:
    """`error [code]: message`, then one line for each field to blame, then what to do next."""
    code = error.code if isinstance(error, BitpressError) else "timeout" if isinstance(error, TimeoutError) else "io"
    say(f"error [{code}]: {error}")
    for path, text in getattr(error, "details", ()):
        say(f"  {path or '/'}: {text}")
    if code in ADVICE:
        say(f"next: {ADVICE[code]}")


def size(num_bytes: int) -> str:
    """Bytes for people, in powers of 1000."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
