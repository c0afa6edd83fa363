"""Processes that must not outlive the one that started them."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(signal_number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent is gone, however it went (Linux only).

    The parent may be gone already: a caller who must know compares os.getppid() afterwards.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
