"""Processes that the dispatcher starts, and its waiting for what happens."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process


async def kill(process: Process) -> None:
    """End a process with all of its session, if it has not ended by itself."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended, and this loop is yet to hear of it
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleep, or less when `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
