"""Processes that end when the one that started them does; the standard library alone."""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): the signal that a process gets when its parent ends."""
INTERVAL = 1.0
"""Seconds between two looks at the parent, where the kernel does not tell."""
STARTER = "NEWSREC_STARTED_BY"
"""Variable with the first process's number, which the processes that it starts inherit."""


def end_with_parent() -> None:
    """End this process soon after the one that started it, however that ends.

    Called at the start of every command. The first process of a run, or torchrun, may be killed
    while another still imports or waits in a collective operation, and nothing else would ever end
    that one. Nothing is lost, because the first process alone writes files. Whoever was started in
    another way, by hand or by a scheduler, is left alone.
    """
    parent = _starter()
    if parent is None:
        os.environ[STARTER] = str(os.getpid())
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    watch(parent)


def watch(parent: int) -> None:
    """End this process within a second or so of another, its parent, on a thread of its own.

    Args:
        parent: The parent's number; if it has ended already, this process ends at once.
    """
    if sys.platform == "win32":
        wait: Any = _wait_on_windows
    else:
        if os.getppid() != parent:
            os._exit(1)
        wait = _wait
    threading.Thread(target=wait, args=(parent,), daemon=True, name="parent-watch").start()


def _starter() -> int | None:
    """Return the number of the process that started this one as one of a run's, if one did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.getppid()
    if os.environ.get("LOCAL_RANK", "0") != "0" and STARTER in os.environ:
        return int(os.environ[STARTER])
    return None


def _wait(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    os._exit(1)


def _wait_on_windows(parent: int) -> None:
    """Wait for the process itself: what ``os.getppid`` says never changes there."""
    synchronize, for_ever = 0x00100000, 0xFFFFFFFF
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    handle = kernel.OpenProcess(synchronize, False, parent)
    if handle:
        kernel.WaitForSingleObject(handle, for_ever)
    os._exit(1)
