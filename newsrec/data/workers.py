"""How a loader's worker processes handle signals that are meant for the run."""

import os
import signal
import threading
from contextlib import suppress

from newsrec.parent import watch

GRACE = 60.0
"""Seconds that a worker still works after a SIGTERM on systems that do not report its sender."""


def keep_working(worker_id: int) -> None:
    """Make a worker end only when the main process does; the ``worker_init_fn`` of every loader.

    A scheduler such as SLURM, or Ctrl-C, signals all processes of a run at once. The main process
    then finishes its step and saves, for which it still needs its workers. A worker ends when the
    main process asks it to, or when the main process ends.
    """
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_obey_parent, daemon=True, name="signals").start()
        else:
            signal.signal(signal.SIGTERM, lambda *_: threading.Timer(GRACE, os._exit, [0]).start())
    # PyTorch also checks if the parent lives, but not while a worker makes a batch. Call watch
    # after SIGTERM is blocked, so that its thread blocks SIGTERM too: the system gives a signal to
    # any thread that does not block it.
    watch(os.getppid())


def _obey_parent() -> None:
    """End at a SIGTERM from the main process, which sends one to a worker that does not finish."""
    while True:
        received = signal.sigwaitinfo({signal.SIGTERM})
        if received.si_pid == os.getppid():
            os._exit(0)
