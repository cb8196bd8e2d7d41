"""How many threads a process computes with: its share of the cores, if more than one helps.

OpenMP's threads spin where they wait for each other. On a machine where others compute as well, a
step with two threads was 30 times slower than with one.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from newsrec.errors import UserError
from newsrec.training.hardware.machine import (
    measurement_key,
    recall,
    remember,
    this_machine,
    usable_cores,
)
from newsrec.training.hardware.probe import LinearMap, one_thread_and_many

log = logging.getLogger(__name__)

SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that torch reads when it is imported."""
LEAST_GAIN = 1.1
"""How many times as fast all threads must be than one; what they gain less does not pay."""
BUSY = 0.5
"""Share of the cores that others keep busy, from which a machine is measured as a busy one."""

Maps = Callable[[], Sequence[LinearMap]]

_told: set[str] = set()
"""Variables that were set here, for processes that Lightning starts."""


class Threads(NamedTuple):
    """How many, and why."""

    number: int
    why: str


def processes_here(trainer: Mapping[str, Any], environ: Any = os.environ) -> int:
    """Return how many processes of a run share this machine's cores.

    Args:
        trainer: The Trainer's options.
        environ: torchrun's and SLURM's variables; theirs count before the Trainer's options.
    """
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

    Args:
        processes: Those of the run on this machine.
        maps: Returns what a step goes through, to measure whether more threads are faster; None
            measures nothing.
        asked: What the command line says.
        kept: What the run that goes on had.
        cores: Cores that this process may use; found out if None.

    Raises:
        UserError: If less than one is asked for.
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
        share = max(1, int(os.environ["SLURM_CPUS_PER_TASK"]))  # bound to this process already
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
    """Compute with so many threads from now on, and tell processes that Lightning starts.

    Args:
        threads: What ``choose_threads`` returned.
        processes: Those of the run on this machine.
        say: Whether to log the number.
    """
    torch.set_num_threads(threads.number)
    if processes > 1 and ("OMP_NUM_THREADS" not in os.environ or "OMP_NUM_THREADS" in _told):
        os.environ["OMP_NUM_THREADS"] = str(threads.number)
        _told.add("OMP_NUM_THREADS")
    if say:
        noun = "thread" if threads.number == 1 else "threads"
        option = "--threads" if _is_torchrun() else "OMP_NUM_THREADS"  # whose own 1 is none
        other = "" if threads.why.startswith("as ") else f"; {option} sets another number"
        log.info("%d %s: %s%s", threads.number, noun, threads.why, other)


def gain_of_many(rounds: Sequence[tuple[float, float]]) -> float:
    """Return how many times as fast many threads are as one.

    The median alone would not see threads that spin at barriers now and then, for 30 times as long:
    the time of all rounds but the worst must be less as well.

    Args:
        rounds: Seconds of one thread and of many; two rounds at least.
    """
    ratios = sorted(((one / many, one, many) for one, many in rounds))
    _, one, many = (sum(column) for column in zip(*ratios[1:], strict=True))
    return min(median(ratio for ratio, *_ in ratios), one / many)


def _is_not_the_users(name: str) -> bool:
    """Return whether torchrun has set a variable, as it does for several processes, or we have."""
    by_torchrun = name == "OMP_NUM_THREADS" and os.environ[name] == "1" and _is_torchrun()
    return by_torchrun or name in _told


def _is_torchrun() -> bool:
    """Return whether torchrun has started this process beside others on this machine."""
    several = os.environ.get("LOCAL_WORLD_SIZE", "1") != "1"
    return several and "TORCHELASTIC_RUN_ID" in os.environ


def is_busy(cores: int) -> bool:
    """Return whether others have computed here in the last minute; False where nobody counts."""
    try:
        return os.getloadavg()[0] >= BUSY * cores
    except (AttributeError, OSError):  # Windows
        return False


def _gain(threads: int, maps: Sequence[LinearMap]) -> tuple[float, str]:
    """Return how many times as fast so many threads are as one, and words if that is known."""
    identity = this_machine(torch.device("cpu")).identity
    busy = is_busy(threads)  # a busy machine gets a measurement of its own
    key = measurement_key("threads", identity, torch.__version__, threads, busy, list(maps))
    found = recall(key, ("gain",))
    if found is not None:
        return found["gain"], ", earlier"
    rounds = one_thread_and_many(maps, threads)
    gain = gain_of_many(rounds)
    remember(key, {"threads": threads, "busy": busy, "gain": gain})
    return gain, ""
