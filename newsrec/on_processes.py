"""Runs a job in numbered parts in processes of this machine; ``newsrec.on_ray`` does it on Ray."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
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
        UserError: If the processes cannot be started, or one is killed, perhaps because the memory
            was full.
    """
    context = _Context()  # a fork would lose Arrow's threads
    pool: ProcessPoolExecutor | None = None
    try:
        try:
            _start_resource_tracker()
            done, told = context.Value("q", 0), 0
            pool = ProcessPoolExecutor(
                min(processes, len(numbers)), context, _start, (os.getpid(), work, job, done)
            )
            with _no_signals_for_processes(), without_main(), _threads(threads):
                futures = [pool.submit(_work, number) for number in numbers]
        except (OSError, RuntimeError) as error:  # RuntimeError: a thread could not be started
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{processes} processes could not be started ({reason}). Ask for fewer, or for "
                "one, which starts none; `ulimit -a` shows some limits of the system."
            ) from error
        for future in futures:
            while True:
                ended = wait([future], INTERVAL).done
                now = done.get_obj().value  # unlocked, since a killed process may hold the lock
                if now > told:  # a rate shown to a person would begin with the processes' start
                    advance(now - told)
                told = now
                if ended:
                    break
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(killed) from error
    finally:
        # Nobody needs the processes any more. Python 3.11 would wait forever if one was killed
        # while it waited for its next part, or was started while the others were ended.
        with _no_ctrl_c():
            _end(context.started)
            if pool is not None:
                with contextlib.suppress(RuntimeError):  # its thread could not be started
                    pool.shutdown(cancel_futures=True)


class _Context(SpawnContext):
    """Starts processes anew, and knows those that it started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **more: Any) -> SpawnProcess:  # type: ignore[override]
        """Make a process, as the class of this name does."""
        self.started.append(SpawnProcess(*args, **more))
        return self.started[-1]


def _end(processes: list[SpawnProcess]) -> None:
    """Kill processes; what they have half written is removed by the one that started them."""
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.kill()
    for process in begun:
        process.join()


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Ignore a second Ctrl-C, which would leave processes that Python waits for when it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _start_resource_tracker() -> None:
    """Start the process that removes semaphores, so that a closed terminal does not end it.

    It would be started again, and print a traceback for each semaphore that it does not know.
    """
    if sys.platform == "win32":
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _no_signals_for_processes() -> Iterator[None]:
    """Let processes that are started meanwhile never get Ctrl-C or the end of the terminal.

    This process gets these signals and SIGTERM afterwards: in between, it would leave a process
    half started, which prints a traceback.
    """
    if sys.platform == "win32":
        yield
        return
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Let processes that are started meanwhile not import the script that this one runs.

    They would run it again, unless it has ``if __name__ == "__main__"``. One thread at a time may
    do this.
    """
    with _one_at_a_time:
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
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
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
