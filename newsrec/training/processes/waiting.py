"""Waits between processes that have no time-out."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch import distributed

from newsrec.data.cache import cache_folders, writable_folder
from newsrec.data.team import ALONE, Team
from newsrec.errors import UserError
from newsrec.shipped import data_folder
from newsrec.training.processes.together import RESTART, early_team, watched_store


def wait_for_all() -> None:
    """Wait until all processes have called this; call it before a collective operation.

    A collective operation ends the run if one process reaches it later than its time-out allows.
    This wait has no time-out; ``fail_together`` ends it if a process fails or is killed. Outside
    ``fail_together`` it does nothing. If only some processes call it, they wait forever.
    """
    store = watched_store()
    if store is not None:
        place = distributed.get_rank(), distributed.get_world_size()
        Team(distributed.PrefixStore(f"newsrec/all/{RESTART}", store), *place).meet()


def wait_in_trainer(trainer: Trainer) -> None:
    """Make the Trainer's processes wait for each other without a time-out.

    They wait before they form their group, since one may still compile data or read a checkpoint;
    before the first collective operation, since one may still download or read the PLM; and at the
    Trainer's barriers, as while one process saves.
    """
    if trainer.world_size > 1:
        strategy: Any = trainer.strategy
        strategy.setup_environment = partial(_meet_first, trainer)
        strategy.setup = partial(_setup, trainer)
        strategy.barrier = partial(_barrier, trainer)


def _meet_first(trainer: Trainer) -> None:
    team = early_team()
    if team.size == trainer.world_size:
        team.meet()
    type(trainer.strategy).setup_environment(trainer.strategy)


def _setup(trainer: Trainer, same: Trainer) -> None:
    wait_for_all()
    type(trainer.strategy).setup(trainer.strategy, same)


def _barrier(trainer: Trainer, name: str | None = None) -> None:
    wait_for_all()
    type(trainer.strategy).barrier(trainer.strategy, name)


def team_beside(trainer: Trainer, root: str | Path) -> Team:
    """Return the processes that divide work whose results are kept beside the data.

    These are all processes if all see the first one's data folder ``root``, else the processes of
    each machine. Without a store, each process is alone and waits for the folder's lock.
    """
    store = watched_store()
    if store is None:
        return ALONE
    rank, size, machines = trainer.global_rank, trainer.world_size, trainer.num_nodes
    # All processes make their teams in the same order, so a team has the same number everywhere.
    number = store.add(f"newsrec/teams/{RESTART}/{rank}", 1)
    own = distributed.PrefixStore(f"newsrec/team/{RESTART}/{number}", store)
    divided = f", divided over {size} processes"
    if machines == 1:
        return Team(own, rank, size, divided)
    team = Team(own, rank, size, f"{divided} of {machines} machines, which share that folder")
    if _all_see(team, data_folder(root)):
        return team
    here = distributed.PrefixStore(f"machine/{trainer.node_rank}", own)
    divided = f", on each of {machines} machines, since they share no data folder"
    return Team(here, trainer.local_rank, size // machines, divided)


def _all_see(team: Team, root: Path) -> bool:
    """Return whether all processes see a file that the first one makes in its cache of ``root``."""
    token = None
    if team.rank == 0:
        try:
            handle, name = tempfile.mkstemp(prefix=".shared-", dir=writable_folder(root))
            os.close(handle)
            token = Path(name)
        except (OSError, UserError):
            pass  # a folder that cannot be written is not shared
    try:
        name = team.share(None if token is None else token.name)
        return team.all_agree(
            name is not None and any((base / name).exists() for base in cache_folders(root))
        )
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
