"""How the CPU kernels are compiled: to strict IEEE arithmetic, once for each machine.

No reassociation and no contraction: a compiled loop rounds like the torch operations it stands
for, whatever the processor. Compiled code is kept where numba finds a place, in this order:
NUMBA_CACHE_DIR, `__pycache__` beside the source, the user's cache directory.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Float = np.float32
Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

log = logging.getLogger(__name__)

OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": False, "boundscheck": False}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called; its callees in the same file are compiled with it."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # numba found no directory that can be written
        _warn_once()
        return numba.njit(**OPTIONS)(function)


@cache
def _warn_once() -> None:
    log.warning("kernels are compiled anew by every process: set NUMBA_CACHE_DIR to a directory that can be written")
