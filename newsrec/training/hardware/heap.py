"""Keeps the memory of steps on a CPU from going back to the system, and from growing."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``."""
LARGE = 1 << 25
"""Larger blocks, in bytes, are still given back when freed; glibc allows no higher limit."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables with which a user sets the same options."""
PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""Environment variable that limits the number of functions oneDNN keeps."""


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


def forget_shapes() -> None:
    """Limit oneDNN to the functions of 32 shapes, enough for a step, unless the user limits it.

    oneDNN compiles a function for each shape, for example of a GELU, and by default keeps 1,024 of
    them. Nearly every batch has other shapes, so they are of no use after a step, and each holds a
    little memory between large tensors: the process grows from step to step. Has no effect once
    oneDNN has compiled a function.
    """
    os.environ.setdefault(PRIMITIVES, "32")
