"""Directories of attempts: short, private, removed with their attempt or, when its dispatcher was killed, later."""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

LONGEST_BASE = 12
SCRATCH = "bitpress-"


def _scratch_base() -> Path:
    """Ray puts sockets some 70 characters below an attempt's directory, and a socket's path has 107 at most."""
    base = tempfile.gettempdir()
    return Path(base if len(base) <= LONGEST_BASE else "/tmp")  # noqa: S108


def make_scratch() -> Path:
    """A directory for one attempt that only this user may enter."""
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=_scratch_base()))


def sweep_scratch() -> None:
    """Remove what dispatchers that were killed left behind (Linux only, where /proc says who is alive)."""
    if sys.platform != "linux":
        return
    for path in _scratch_base().glob(f"{SCRATCH}*-*"):
        pid = path.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with contextlib.suppress(FileNotFoundError):  # another dispatcher sweeps, too
                if path.stat().st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
