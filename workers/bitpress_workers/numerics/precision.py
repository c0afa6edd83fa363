"""Float32 means float32: no matrix product of ours runs in a shorter type because the process chose so."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class _Setting:
    """torch's setting is one for all threads: the first that needs float32 remembers it, the last restores it."""

    lock = Lock()
    users = 0
    chosen = "highest"


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32 within: neither in TF32 on a GPU nor in bfloat16 on a CPU."""
    with _Setting.lock:
        if not _Setting.users:
            _Setting.chosen = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
        _Setting.users += 1
    try:
        yield
    finally:
        with _Setting.lock:
            _Setting.users -= 1
            if not _Setting.users:
                torch.set_float32_matmul_precision(_Setting.chosen)
