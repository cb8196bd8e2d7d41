"""End a process when the process that started it ends; standard library only."""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl(2): set the signal that a process gets when its parent ends."""
INTERVAL = 1.0
"""Seconds between two checks of the parent."""
STARTER = "NEWSREC_STARTED_BY"
"""Environment variable with the first process's id, inherited by the processes it starts."""


def end_with_parent() -> None:
    """End this process soon after its parent, however the parent ends, if the parent is of its run.

    Called at the start of every command. The first process of a run, or torchrun, may be killed
    while another process still imports or waits in a collective operation, and nothing else would
    ever end that process. Nothing is lost, because only the first process writes files. Processes
    started in another way, by hand or by a scheduler, are left alone.
    """
    parent = _starter()
    if parent is None:
        os.environ[STARTER] = str(os.getpid())
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    watch(parent)


def watch(parent: int, grace: float = 0) -> None:
    """Start a thread that ends this process within a second or so of its parent's end.

    With ``grace``, the process gets a SIGTERM, and so many seconds to end what it has started.
    """
    if sys.platform == "win32":
        wait: Any = _wait_on_windows
    else:
        if os.getppid() != parent:
            os._exit(1)
        wait = _wait
    threading.Thread(target=wait, args=(parent, grace), daemon=True, name="parent-watch").start()


def _starter() -> int | None:
    """Return the id of the process that started this one as part of a run, or None."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.getppid()
    if os.environ.get("LOCAL_RANK", "0") != "0" and STARTER in os.environ:
        return int(os.environ[STARTER])
    return None


def _wait(parent: int, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    _end(grace)


def _end(grace: float) -> None:
    if grace:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
    os._exit(1)


def _wait_on_windows(parent: int, grace: float) -> None:
    """Wait for the parent to end; on Windows, ``os.getppid`` does not change when it does."""
    synchronize, for_ever = 0x00100000, 0xFFFFFFFF
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    handle = kernel.OpenProcess(synchronize, False, parent)
    if handle:
        kernel.WaitForSingleObject(handle, for_ever)
    _end(grace)
