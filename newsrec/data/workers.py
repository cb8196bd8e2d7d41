"""What a loader's worker processes do with signals that are meant for the run."""

import os
import signal
import threading
from contextlib import suppress

from newsrec.parent import watch

GRACE = 60.0
"""Seconds that a worker goes on after a SIGTERM, where it cannot see who sent it."""


def keep_working(worker_id: int) -> None:
    """Let the main process decide when to end; the ``worker_init_fn`` of every loader.

    A scheduler such as SLURM, and Ctrl-C, signal all processes of a run at once. The main process
    then saves after its step, for which it needs its workers. They end by its word, or with it.

    Args:
        worker_id: Not used.
    """
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_obey_parent, daemon=True, name="signals").start()
        else:
            signal.signal(signal.SIGTERM, lambda *_: threading.Timer(GRACE, os._exit, [0]).start())
    # PyTorch looks as well, but not while a worker makes a batch. After the mask, which a thread
    # inherits: a signal for the process goes to any thread that has not blocked it.
    watch(os.getppid())


def _obey_parent() -> None:
    """End at a SIGTERM of the main process, which sends one to a worker that does not finish."""
    while True:
        received = signal.sigwaitinfo({signal.SIGTERM})
        if received.si_pid == os.getppid():
            os._exit(0)
