"""Runs a job in numbered parts in processes of this machine; ``newsrec.on_ray`` does it on Ray."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

from newsrec.aside import STOPS
from newsrec.errors import UserError
from newsrec.parent import watch

Advance = Callable[[int], None]
"""Called with the amount of work just done."""
INTERVAL = 0.2
"""Seconds between two looks at what the processes have done."""


def run_in_processes(
    work: Callable[[Any, int, Advance], Any],
    job: Any,
    numbers: list[int],
    processes: int,
    *,
    killed: str,
    advance: Advance = lambda amount: None,
    threads: int | None = None,
) -> Generator[Any, None, None]:
    """Let processes work on numbered parts; yield the results in the order of ``numbers``.

    The processes end with this one, however it ends, and when the generator is closed. Close it,
    because its processes work on meanwhile.

    Args:
        work: Called in a process with the job, a number and its own ``advance``; a function of a
            module, as it is pickled.
        job: What all parts have in common; it is pickled, too.
        numbers: The parts.
        processes: Number of processes; no more than parts are started.
        killed: What is said if a process is killed.
        advance: Called in this process with what ``work`` gave to its own.
        threads: Threads for numpy's products in each process; None leaves it to the environment.

    Raises:
        UserError: If a process is killed, perhaps because the memory was full.
    """
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")  # a fork would lose Arrow's threads
    done, told = spawn.Value("q", 0), 0
    pool = ProcessPoolExecutor(
        min(processes, len(numbers)), spawn, _start, (os.getpid(), work, job, done)
    )
    try:
        with _no_ctrl_c_for_processes(), _threads(threads), without_main():
            futures = [pool.submit(_work, number) for number in numbers]
        for future in futures:
            while True:
                ended = wait([future], INTERVAL).done
                now = done.value
                if now > told:  # a rate shown to a person would begin with the processes' start
                    advance(now - told)
                told = now
                if ended:
                    break
            yield future.result()
    except BaseException as error:
        # Nobody needs their parts any more. Python 3.11 would wait forever for a process that was
        # started while it ended the others, and after a second Ctrl-C.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(killed) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _no_ctrl_c_for_processes() -> Iterator[None]:
    """Let processes that are started meanwhile never get Ctrl-C; this one gets it afterwards."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else the first process starts it, and it unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Let processes that are started meanwhile not import the script that this one runs.

    They would run it again, unless it has ``if __name__ == "__main__"``.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the threads of processes that are started meanwhile; numpy reads them when it starts."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    if number is not None:
        os.environ[name] = str(number)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


_given: tuple[Callable[[Any, int, Advance], Any], Any, Any]
"""Of a process: ``work``, ``job``, and the counter of what was done."""


def _start(parent: int, work: Callable[[Any, int, Advance], Any], job: Any, done: Any) -> None:
    global _given
    _given = work, job, done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the first process ends the others
    for number in STOPS:  # else SystemExit would be a part's result, and this process would go on
        signal.signal(number, lambda *_: os._exit(1))
    watch(parent)


def _work(number: int) -> Any:
    work, job, done = _given

    def advance(amount: int) -> None:
        with done.get_lock():
            done.value += amount

    return work(job, number, advance)
