"""Memory that every step frees and takes again: a process keeps it instead."""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h, for mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# By which users tell glibc themselves.
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, to use it again.

    glibc gives large blocks back to the system, which has to clear each page of the next ones: up to a sixth
    of a small model's training step on a CPU (benchmarks/distill_throughput.py). The most that is taken at a
    time stays as it was. Nothing changes with another C library, or where the environment says what glibc's
    malloc shall do.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in _VARIABLES):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_MAX, 0)
