"""Finds processes and kills them midway; reads /proc. Also work for processes."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from newsrec import on_processes
from newsrec.aside import stopped_by_signals


@contextlib.contextmanager
def killed_when(begun, name):
    """Kill a process below this one, by a part of its command line.

    It is killed once ``begun`` returns something true, and before the block has ended.
    """
    killed = []

    def kill():
        while not begun():
            time.sleep(0.001)
        worker = processes(os.getpid(), name)[0]
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert killed


def processes(root, name):
    """Return the processes below one whose command line has this in it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(status[1]), (folder / "cmdline").read_text()
            except OSError:
                continue  # it has ended
    found = []
    for pid, (parent, line) in parents.items():
        while parent in parents and parent != root:
            parent = parents[parent][0]
        if parent == root and name in line:
            found.append(pid)
    return found


def command_of(pid):
    """Return the first word of a process's command line, or nothing if it has ended."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""


def is_running(pid):
    """Return whether a process has not ended."""
    try:
        status = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return status[0] != "Z"


def work_long(job, number, advance):
    """Work of ``run_in_processes`` that cleans up on signals, as all that writes files does."""
    with stopped_by_signals():
        advance(1)
        time.sleep(60)


def work_short(job, number, advance):
    """Work of ``run_in_processes``; returns the number."""
    return number


def work_killed_while_counting(job, number, advance):
    """Work of ``run_in_processes`` that is killed while it tells how much it has done."""
    on_processes._given[2].get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
