"""Chooses the number of threads of a process: its share of the cores, if more than one is faster.

OpenMP's threads spin while they wait for each other. On a machine with other busy processes, a step
with two threads can be many times slower than with one.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from newsrec.cores import usable_cores
from newsrec.errors import UserError
from newsrec.training.hardware.machine import (
    measurement_key,
    recall,
    remember,
    this_machine,
)
from newsrec.training.hardware.probe import LinearMap, one_thread_and_many

log = logging.getLogger(__name__)

SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that torch reads when it is imported."""
LEAST_GAIN = 1.1
"""All threads are used only if they are at least this many times as fast as one."""
BUSY = 0.5
"""Load per core from which a machine counts as busy."""

Maps = Callable[[], Sequence[LinearMap]]

_set_here: set[str] = set()
"""Environment variables that this module has set, for processes that Lightning starts."""


class Threads(NamedTuple):
    """A number of threads, and the reason for it."""

    number: int
    why: str


def processes_here(trainer: Mapping[str, Any], environ: Any = os.environ) -> int:
    """Return how many processes of a run share this machine's cores; torchrun and SLURM decide."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if environ.get(name, "").isdigit():
            return max(1, int(environ[name]))
    devices = trainer["devices"]
    if isinstance(devices, list):
        return max(1, len(devices))
    if str(devices).isdigit():
        return max(1, int(devices))
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    on_gpu = trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.cuda.device_count() if on_gpu else 1


def choose_threads(
    processes: int,
    maps: Maps | None = None,
    asked: int | None = None,
    kept: int | None = None,
    cores: int | None = None,
) -> Threads:
    """Return how many threads this process should compute with.

    ``maps`` returns the linear maps of a step, to measure whether more threads are faster; None
    measures nothing. ``asked`` is the value of ``--threads``, ``kept`` the number of the run that
    is resumed. Cores are detected if None.
    """
    if asked is not None:
        if asked < 1:
            raise UserError(f"--threads is {asked}; it must be at least 1.")
        return Threads(asked, "as --threads says")
    for name in SETTINGS:
        if os.environ.get(name) and not _is_not_the_users(name):
            number = torch.get_num_threads()
            before = "" if kept in (None, number) else f", {kept} in the run so far"
            return Threads(number, f"as {name} says{before}")
    share = max(1, (usable_cores() if cores is None else cores) // max(1, processes))
    if os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        share = max(1, int(os.environ["SLURM_CPUS_PER_TASK"]))  # already a share per process
    if kept is not None:
        if kept <= share:
            return Threads(kept, "as in the run so far")
        why = f"the run had {kept} so far, and there are fewer cores now; last digits may differ"
        return Threads(share, why)
    of = "core" if share == 1 else "cores"
    each = "" if processes == 1 else f" for each of {processes} processes"
    why = f"{share} {of}{each}"
    if share == 1 or processes > 1 or maps is None:
        return Threads(share, why)
    gain, earlier = _gain(share, maps())
    measured = f"{share} were measured {gain:.2f} times as fast as 1{earlier}"
    return Threads(share if gain >= LEAST_GAIN else 1, f"{why}; {measured}")


def set_threads(threads: Threads, processes: int = 1, say: bool = True) -> None:
    """Set the number of threads, also for processes that Lightning starts.

    These read it from the environment, until ``forget_threads``.
    """
    torch.set_num_threads(threads.number)
    if processes > 1 and ("OMP_NUM_THREADS" not in os.environ or "OMP_NUM_THREADS" in _set_here):
        os.environ["OMP_NUM_THREADS"] = str(threads.number)
        _set_here.add("OMP_NUM_THREADS")
    if say:
        noun = "thread" if threads.number == 1 else "threads"
        option = "--threads" if _is_torchrun() else "OMP_NUM_THREADS"  # torchrun's 1 is ignored
        other = "" if threads.why.startswith("as ") else f"; {option} sets another number"
        log.info("%d %s: %s%s", threads.number, noun, threads.why, other)


def forget_threads() -> None:
    """Remove the environment variables that ``set_threads`` has set; call it after the run."""
    while _set_here:
        os.environ.pop(_set_here.pop(), None)


def gain_of_many(rounds: Sequence[tuple[float, float]]) -> float:
    """Return how many times as fast many threads are as one, from seconds with one and with many.

    This is the lower of two ratios: the median over the rounds, and the ratio of total times
    without the worst round. The median alone would miss occasional rounds in which threads spin at
    barriers and take many times as long.
    """
    ratios = sorted(((one / many, one, many) for one, many in rounds))
    _, one, many = (sum(column) for column in zip(*ratios[1:], strict=True))
    return min(median(ratio for ratio, *_ in ratios), one / many)


def _is_not_the_users(name: str) -> bool:
    """Return whether torchrun (which does so for several processes) or we have set a variable."""
    by_torchrun = name == "OMP_NUM_THREADS" and os.environ[name] == "1" and _is_torchrun()
    return by_torchrun or name in _set_here


def _is_torchrun() -> bool:
    """Return whether torchrun has started this and other processes on this machine."""
    several = os.environ.get("LOCAL_WORLD_SIZE", "1") != "1"
    return several and "TORCHELASTIC_RUN_ID" in os.environ


def is_busy(cores: int) -> bool:
    """Return whether the machine was busy in the last minute; False if the load is not known."""
    try:
        return os.getloadavg()[0] >= BUSY * cores
    except (AttributeError, OSError):  # Windows
        return False


def _gain(threads: int, maps: Sequence[LinearMap]) -> tuple[float, str]:
    """Return how many times as fast ``threads`` are as one, and ``, earlier`` if recalled."""
    identity = this_machine(torch.device("cpu")).identity
    busy = is_busy(threads)  # measurements on a busy machine are kept separately
    key = measurement_key("threads", identity, torch.__version__, threads, busy, list(maps))
    found = recall(key, ("gain",))
    if found is not None:
        return found["gain"], ", earlier"
    rounds = one_thread_and_many(maps, threads)
    gain = gain_of_many(rounds)
    remember(key, {"threads": threads, "busy": busy, "gain": gain})
    return gain, ""
