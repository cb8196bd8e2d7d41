"""Processes that end when the one that started them does; the standard library alone."""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): the signal that a process gets when its parent ends."""
INTERVAL = 1.0
"""Seconds between two looks at the parent, where the kernel does not tell."""


def end_with_parent() -> None:
    """End this process soon after its parent ends, however that happens.

    Called at the start of every process that is one of several: the first process of a run, or
    torchrun, may be killed while this one still imports or waits in a collective operation, and
    nothing else would ever end it. Nothing is lost, because the first process alone writes files.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Also where the kernel tells: the parent may have ended before it was asked to.
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent-watch").start()


def is_one_of_several() -> bool:
    """Return whether Lightning or torchrun started this process as one of a run's."""
    return os.environ.get("LOCAL_RANK", "0") != "0" or "TORCHELASTIC_RUN_ID" in os.environ


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    os._exit(1)
