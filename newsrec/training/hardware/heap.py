"""Has the C library keep the memory that a step frees, for the next step."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``."""
LARGE = 1 << 25
"""Bytes from which memory is still given back when it is freed; glibc's highest such limit."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which a user decides the same."""


def keep_freed_memory() -> bool:
    """Keep freed memory in this process; return whether that was possible.

    A step on a CPU frees tensors of a few MiB. By default glibc gives them back to the system, and
    the next step waits for new, zeroed pages. Other libraries and a user's settings are left alone.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or any(name in os.environ for name in SETTINGS):
        return False
    options = {MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: (1 << 31) - 1}
    return all(libc.mallopt(*option) for option in options.items())  # type: ignore[union-attr]
