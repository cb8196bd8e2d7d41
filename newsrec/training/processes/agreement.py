"""Lets the first process decide for all, before the process group exists."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import TCPStore

from newsrec.console import is_first_process
from newsrec.errors import UserError
from newsrec.parent import STARTER

PATIENCE = timedelta(minutes=10)
"""How long the other processes wait for a first sign of life; the first process may import from a
slow disk."""
SILENCE = 120.0
"""Seconds without a new sign after which a process that gave signs counts as killed. The limit is
high, since the thread that gives the signs cannot run while some libraries compute."""
POLL = 1.0
"""Seconds between two signs of life, and between two looks for one."""
RESTART = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
"""Part of keys, since torchrun may keep its store when it restarts all processes."""
SIGN = f"newsrec/alive/{RESTART}"
"""Key under which each process, by its rank, says that it is alive."""
FAILED = "failed"
SERVED = "TORCHELASTIC_USE_AGENT_STORE"
"""Environment variable: ``True`` if torchrun's agent keeps a store that processes can reach."""

_kept: list[TCPStore] = []
"""Stores to keep open: the later process group shares the server of the first process."""


def decided_by_first(name: str, decide: Callable[[], str], num_nodes: int = 1) -> str:
    """Return the first process's decision, the same on every process of every machine.

    Processes of torchrun and SLURM run already and read the decision from the store through which
    their process group will form. Processes that Lightning starts inherit it in an environment
    variable. The variable counts only if the parent process has set it, since an older run may have
    left one behind. ``decide`` is called on the first process, and on others that cannot ask it.
    ``num_nodes`` is used if neither torchrun nor SLURM gives it. The others wait as long as the
    first process says that it is alive, since it may read large files. UserError on all but the
    first process, if the first cannot be reached, has failed or was killed.
    """
    variable = f"NEWSREC_{name.upper()}"
    key = f"newsrec/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if is_first_process():
        place = _meeting_place(num_nodes)
        store = None if place is None else _store(*place)
        value = FAILED
        try:
            with _saying_alive(store, _sign(key)):
                value = decide()
            os.environ[variable] = f"{os.getpid()}:{value}"
        finally:
            if store is not None:
                store.set(key, value)
        return value
    place = _meeting_place(num_nodes)
    if place is None:
        starter, _, inherited = os.environ.get(variable, "").partition(":")
        # On Windows a virtual environment's python runs between the parent and this process.
        if starter in (str(os.getppid()), os.environ.get(STARTER)):
            return inherited
        return decide()
    try:
        value = _hear(_store(*place), key)
    except (RuntimeError, TimeoutError) as error:
        raise UserError(
            f"The first process did not send its {name} through {place[0]}:{place[1]} "
            f"({str(error).splitlines()[0]}). Is that address reachable, and does every process "
            "run the same command?"
        ) from error
    if value == FAILED:
        raise UserError(f"The first process failed before it chose the {name}; see its message.")
    os.environ[variable] = f"{os.getpid()}:{value}"  # for processes that Lightning starts here
    return value


def _sign(key: str) -> str:
    return f"{key}/alive"


@contextmanager
def _saying_alive(store: Any, key: str) -> Iterator[None]:
    """Let a thread store a new sign under ``key`` every second; None stores nothing."""
    if store is None:
        yield
        return
    done = threading.Event()

    def say() -> None:
        number = 0
        with suppress(RuntimeError):  # the store has ended, which the others notice by themselves
            while not done.is_set():
                number += 1
                store.set(key, str(number))
                done.wait(POLL)

    thread = threading.Thread(target=say, daemon=True, name="alive")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _hear(store: Any, key: str) -> str:
    """Wait for a text under ``key`` as long as the first process gives signs of life.

    Raises:
        TimeoutError: If it gave no sign for ``SILENCE``, or none at all within ``PATIENCE``.
    """
    signs = (_sign(key), f"{SIGN}/0")  # the second is given by ``fail_together``
    heard: list[bytes] = []
    since, limit, pause = time.monotonic(), PATIENCE.total_seconds(), POLL / 100
    while not store.check([key]):
        now = [store.get(sign) for sign in signs if store.check([sign])]
        if now != heard:
            heard, since, limit = now, time.monotonic(), SILENCE
        elif time.monotonic() - since > limit:
            raise TimeoutError(f"no sign of life for {limit:g} s")
        time.sleep(pause)
        pause = min(2 * pause, POLL)
    value: bytes = store.get(key)
    return value.decode()


def _meeting_place(num_nodes: int) -> tuple[str, int, bool] | None:
    """Return host and port of the store, and whether the first process is its server.

    None if there is one process only, or if Lightning starts the others.
    """
    if TorchElasticEnvironment.detect():
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return None
        served = os.environ.get(SERVED) == "True"
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), not served
    if SLURMEnvironment.detect():
        slurm = SLURMEnvironment()
        if slurm.world_size() > 1:
            return slurm.main_address, slurm.main_port, True
        return None
    given = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    if num_nodes > 1 and all(given) and "LOCAL_RANK" not in os.environ:
        return str(given[0]), int(str(given[1])), True
    return None


def early_rank() -> tuple[int, int] | None:
    """Return this process's rank and the number of processes, before the process group exists.

    None if there is no store then, since there is one process, or Lightning starts the others.
    """
    if _meeting_place(1) is None:
        return None
    if TorchElasticEnvironment.detect():
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_PROCID"]), SLURMEnvironment().world_size()


def early_store(timeout: timedelta) -> TCPStore | None:
    """Return the store through which the process group will form; None if there is none."""
    place = _meeting_place(1)
    return None if place is None else _store(*place, timeout)


def _store(host: str, port: int, serve: bool, timeout: timedelta = PATIENCE) -> TCPStore:
    """Open the store; with ``multi_tenant``, the process group can use the same server later."""
    master = serve and is_first_process()
    shared = {"wait_for_workers": False, "multi_tenant": True}
    store = TCPStore(host, port, is_master=master, timeout=timeout, **shared)
    _kept.append(store)
    return store
