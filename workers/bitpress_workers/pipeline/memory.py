"""This process's memory, and this host's."""

import ctypes
import os
import platform
import resource
from pathlib import Path

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
