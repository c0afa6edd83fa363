"""The command `bitpress` as a process of its own."""

import os
import signal
import subprocess
import sys

# The name in usage lines is argv[0], which `-c` gives no other way to choose.
COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'bitpress'; from bitpress.cli import main; main()"]
PLAIN = {"NO_COLOR": "1", "COLUMNS": "100", "TERMINAL_WIDTH": "100", "FORCE_COLOR": "", "GITHUB_ACTIONS": ""}


def bitpress(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | PLAIN | environment,
    )


def start_bitpress(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | PLAIN | environment,
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
