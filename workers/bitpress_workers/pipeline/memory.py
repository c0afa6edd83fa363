"""This process's memory, and this host's; what it looks like when there is not enough."""

import ctypes
import errno
import os
import platform
import resource
from pathlib import Path

import torch

from bitpress.errors import OutOfMemory

M_MMAP_THRESHOLD = -3  # malloc.h of the GNU C library
LARGE_BYTES = 2**20

PINNED_SHARE = 4  # Pinned memory is lost to everything else on the host, so no more than a fourth of what is free.


def return_large_tensors() -> None:
    """Have large tensors' memory go back to the host as soon as they are dropped.

    The GNU allocator raises its threshold for that to the size of what was freed last, up to 32 MiB; blocks
    that come and go then leave holes in the heap, and a long model takes more memory than a short one.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def available_host_bytes() -> int:
    """Memory of this host that is free or can be freed."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = int(available.split()[1]) * 1024
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return free
    return min(free, int(most) - int(limit.with_name("memory.current").read_text()))


def pinnable_bytes() -> int:
    """Host memory that may be pinned at once, for GPUs to copy from."""
    return available_host_bytes() // PINNED_SHARE


def peak_resident_bytes() -> int:
    """Most memory that this process has had resident.

    Not getrusage's: after fork and exec that starts at the parent's.
    """
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, which counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def out_of_memory(error: BaseException | None) -> OutOfMemory | None:
    """Return our error for one that says that memory ran out, on a device or on its host; nothing for others."""
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(f"a device ran out of memory: {error}")
    refused = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if refused or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    ):  # torch has no class for it
        return OutOfMemory(f"a host ran out of memory: {error}")
    return None


def num_killed_for_memory() -> int:
    """How many processes this host's system has ended for lack of memory so far; 0 when it does not say."""
    counters = Path("/proc/vmstat")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
