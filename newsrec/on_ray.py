"""Runs a job in numbered parts on Ray, on this machine or on a cluster."""

import contextlib
import importlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Generator
from typing import Any

from newsrec.cores import usable_cores
from newsrec.errors import MissingPackageError, UserError
from newsrec.on_processes import without_main
from newsrec.parent import watch

RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # send no statistics unasked
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its remarks are of no use to a user
    "RAY_worker_niceness": "0",  # the usual priority, as with other engines
}
RAY_STORE = 128 << 20
"""Bytes of Ray's object store on one machine: only numbers and counts of parts pass through it."""
SECONDS_TO_CONNECT = 5
SECONDS_TO_END = 30
"""Time that Ray has to end its processes."""


def require_address(option: str, address: str | None) -> None:
    """Refuse an empty address of a cluster, such as that of a variable that is not set.

    Raises:
        UserError: If the address is empty.
    """
    if address is not None and not address.strip():
        raise UserError(
            f"{option} is empty. Give the address of a cluster, or leave the option out to work on "
            "this machine alone."
        )


def require_ray() -> None:
    """Import Ray.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        importlib.import_module("ray.data")
    except ImportError as error:
        raise MissingPackageError.of("--engine ray", "ray", "ray") from error


def run_on_ray(
    worker: Any, job: Any, numbers: list[int], workers: int | None, address: str | None
) -> Generator[str, None, None]:
    """Let actors work on numbered parts; yield the results in any order.

    If an actor is killed, another does its part again. Ray runs in a process of its own, because it
    ends the process that uses it when its cluster is lost; within a session of Ray, in this one.

    Args:
        worker: Class of the actors, made from ``job``. An actor is called with a table that has the
            column ``part``, and returns a table with the column ``done``, a text for each part.
        job: What all parts have in common; it is pickled.
        numbers: The parts.
        workers: Number of actors; None takes as many as there are CPUs.
        address: Address of a cluster; None starts Ray on this machine.

    Raises:
        UserError: If the cluster cannot be used, or is lost.
    """
    given = worker, job, numbers, workers, address
    if importlib.import_module("ray").is_initialized():
        yield from _in_this_process(*given)
        return
    spawn = multiprocessing.get_context("spawn")
    lines, sender = spawn.Pipe(duplex=False)
    driver = spawn.Process(target=_drive, args=(os.getpid(), sender, given))
    with without_main():
        driver.start()
    sender.close()
    try:
        while True:
            kind, said = lines.recv()
            if kind == "end":
                return
            if kind != "line":
                raise UserError(said) if kind == "mistake" else RuntimeError(said)
            yield said
    except EOFError as error:
        raise _lost("the process that used it was ended") from error
    finally:
        driver.terminate()
        driver.join(SECONDS_TO_END)
        driver.kill()
        _end_what_is_left(driver.pid)  # if the process was killed


def _drive(parent: int, sender: Any, given: tuple[Any, ...]) -> None:
    """Run Ray in a process of its own, and send what it yields or how it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the first process ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # until Ray sets its own
    if sys.platform != "win32":
        os.setsid()  # a session of its own, which has all processes of Ray
    watch(parent, SECONDS_TO_END)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # Ray prints whole logs when its cluster is lost
        os.dup2(nothing, stream)
    try:
        with contextlib.closing(_in_this_process(*given)) as lines:
            for line in lines:
                sender.send(("line", line))
        sender.send(("end", ""))
    except UserError as error:
        sender.send(("mistake", str(error)))
    except Exception:
        sender.send(("bug", traceback.format_exc()))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut this short
        _end_what_is_left(os.getpid())


def _end_what_is_left(session: int | None) -> None:
    """Kill the processes of Ray that it has not ended itself, by the session that they are in.

    When Ray ends early, its agents report this for a minute to a server that has ended, too.
    """
    try:
        psutil: Any = importlib.import_module("psutil")  # it comes with Ray
    except ImportError:
        return  # Ray was not imported yet
    if sys.platform == "win32":
        return
    for _ in range(2):  # a process may start another meanwhile
        for pid in psutil.pids():
            with contextlib.suppress(OSError):  # it has ended
                if pid != os.getpid() and os.getsid(pid) == session:
                    os.kill(pid, signal.SIGKILL)


def _lost(problem: str) -> UserError:
    return UserError(
        f"--engine ray: Ray or its cluster ended before all parts were done ({problem}). Look for "
        "the reason in Ray's logs, then start the cluster and this command again."
    )


def _in_this_process(
    worker: Any, job: Any, numbers: list[int], workers: int | None, address: str | None
) -> Generator[str, None, None]:
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")
    data: Any = importlib.import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)  # Ray sets its level apart
    mine = not ray.is_initialized()
    if mine:
        start_ray(ray, workers, address)
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False  # newsrec has its own
        context.print_on_execution_start = False
        actors = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(numbers)) or 1
        parts = data.from_items([{"part": n} for n in numbers], override_num_blocks=len(numbers))
        done = parts.map_batches(
            worker,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        for row in done.iter_rows():
            yield row["done"]
    except ray.exceptions.RayTaskError:  # of the worker: a bug
        raise
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise _lost(_in_a_line(error)) from error
    finally:
        if mine:
            ray.shutdown()


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def start_ray(ray: Any, workers: int | None, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine that only this machine can reach.

    Raises:
        UserError: If there is no cluster, or it has another version of Ray.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(
            address="local",
            num_cpus=workers or usable_cores(),
            include_dashboard=False,
            object_store_memory=RAY_STORE,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        return
    try:
        host = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
        if host:  # fails in seconds; Ray itself tries for minutes
            socket.create_connection((host[1], int(host[2])), SECONDS_TO_CONNECT).close()
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        problem = _in_a_line(error)
        raise UserError(
            f"--ray_address {address}: Ray {ray.__version__} cannot use this cluster ({problem}). "
            "Start it by `ray start --head` with this version, or leave the option out."
        ) from error
