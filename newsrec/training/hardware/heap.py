"""Makes the C library keep the memory that a step frees, for the next step."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``."""
LARGE = 1 << 25
"""Larger blocks, in bytes, are still given back when freed; glibc allows no higher limit."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables with which a user sets the same options."""


def keep_freed_memory() -> bool:
    """Keep freed memory in this process; return whether that was possible.

    A step on a CPU frees tensors of a few MiB. By default glibc gives them back to the system, and
    the next step waits for new, zeroed pages. Nothing is changed where the C library is another
    one, or where the user has set one of ``SETTINGS``.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or any(name in os.environ for name in SETTINGS):
        return False
    options = {MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: (1 << 31) - 1}
    return all(libc.mallopt(*option) for option in options.items())  # type: ignore[union-attr]
