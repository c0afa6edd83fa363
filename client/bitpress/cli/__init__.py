"""The command `bitpress`: importing a file of this package registers its commands, `main` runs one."""

import sys
from typing import NoReturn

from bitpress.cli import account, doctor, jobs, keys, life, local, plan, results, service, watch, webhooks
from bitpress.cli.app import app
from bitpress.cli.exits import exit_code
from bitpress.cli.output import print_error
from bitpress.errors import BitpressError

__all__ = [
    "account",
    "doctor",
    "jobs",
    "keys",
    "life",
    "local",
    "main",
    "plan",
    "results",
    "service",
    "watch",
    "webhooks",
]


def main() -> NoReturn:
    """Run one command and leave with its exit code."""
    try:
        app()
    except (BitpressError, OSError) as error:  # TimeoutError, too, is an OSError
        print_error(error)
        sys.exit(exit_code(error))
    sys.exit(0)
