"""What the first process decides for all, before there is a process group to ask it by."""

import os
from collections.abc import Callable
from datetime import timedelta

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import TCPStore

from newsrec.console import is_first_process
from newsrec.errors import UserError
from newsrec.parent import STARTER

PATIENCE = timedelta(minutes=10)
"""How long the others wait; the first one's imports may come from a slow disk."""
FAILED = "failed"

_kept: list[TCPStore] = []
"""The process group that comes later shares the first process's server, so it must live on."""


def decided_by_first(name: str, decide: Callable[[], str], num_nodes: int = 1) -> str:
    """Return what the first process decides, the same on every process of every machine.

    Those of torchrun and SLURM run already, and find it in the store by which their process group
    will form. Processes that Lightning starts inherit it in an environment variable, which counts
    only if their own starter has set it: an older run may have left one behind.

    Args:
        name: Of what is decided.
        decide: Decides; called on the first process alone, or where there is nobody to ask.
        num_nodes: Machines, where neither torchrun nor SLURM says so.

    Raises:
        UserError: On all but the first process, if that one cannot be heard or failed.
    """
    variable = f"NEWSREC_{name.upper()}"
    key = f"newsrec/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if is_first_process():
        place = _meeting_place(num_nodes)
        store = None if place is None else _store(*place)
        value = FAILED
        try:
            value = decide()
            os.environ[variable] = f"{os.getpid()}:{value}"
        finally:
            if store is not None:
                store.set(key, value)
        return value
    place = _meeting_place(num_nodes)
    if place is None:
        starter, _, inherited = os.environ.get(variable, "").partition(":")
        # On Windows a virtual environment's python stands between the two.
        if starter in (str(os.getppid()), os.environ.get(STARTER)):
            return inherited
        return decide()
    try:
        value = _store(*place).get(key).decode()
    except RuntimeError as error:
        raise UserError(
            f"The first process did not say its {name} at {place[0]}:{place[1]} "
            f"({str(error).splitlines()[0]}). Is that address reachable, and does every process "
            "run the same command?"
        ) from error
    if value == FAILED:
        raise UserError(f"The first process failed before it chose the {name}; it says why.")
    os.environ[variable] = f"{os.getpid()}:{value}"  # for those that Lightning starts here
    return value


def _meeting_place(num_nodes: int) -> tuple[str, int, bool] | None:
    """Return host and port of the store, and whether the first process is its server.

    None where a process is alone, or where Lightning starts the others.
    """
    if TorchElasticEnvironment.detect():
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return None
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
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


def early_rank() -> int | None:
    """Return this process's number where all meet before there is a process group."""
    if _meeting_place(1) is None:  # alone, or Lightning starts the others
        return None
    return int(
        os.environ["RANK"] if TorchElasticEnvironment.detect() else os.environ["SLURM_PROCID"]
    )


def early_store(timeout: timedelta) -> TCPStore | None:
    """Return the store by which the process group will form, where there is a place for it.

    Args:
        timeout: How long to try.
    """
    place = _meeting_place(1)
    return None if place is None else _store(*place, timeout)


def _store(host: str, port: int, serve: bool, timeout: timedelta = PATIENCE) -> TCPStore:
    """Return the store; ``multi_tenant`` lets the process group have the same server later."""
    store = TCPStore(
        host,
        port,
        is_master=serve and is_first_process(),
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )
    _kept.append(store)
    return store
