"""Ends all processes of a run if one fails, and checks that all have the same data."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from newsrec.console import say
from newsrec.data.states import distinct_rows
from newsrec.errors import UserError
from newsrec.training.checkpoint.saving import Stopped
from newsrec.training.processes.agreement import SERVED, early_rank, early_store
from newsrec.training.processes.share_folder import needs_on_disk

log = logging.getLogger(__name__)

KEY = f"newsrec/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
"""Key of a failure in the store. The restart count is in it, since torchrun may keep its store when
it restarts all processes."""
POLL = 1.0
"""Seconds between two checks for another process's failure."""
CONNECT = timedelta(seconds=10)
"""How long one attempt to reach the store may take."""
GRACE = 3 * POLL
"""Seconds that a failing process stays alive, so that the others learn of the failure."""


_shared: list[int] = []
"""This process's rank inside ``fail_together_from_the_start``; else empty."""


@contextmanager
def fail_together(trainer: Trainer) -> Iterator[None]:
    """End all processes within seconds if any of them fails, with the message of the failure.

    Otherwise the others wait in their next collective operation, with NCCL for half an hour. A
    separate thread watches the store through which the processes formed their group, so no
    collective operation is needed.
    """
    if trainer.world_size == 1 or _shared:
        yield
        return
    with _end_together(trainer.global_rank):
        yield


@contextmanager
def fail_together_from_the_start() -> Iterator[None]:
    """Do what ``fail_together`` does from the start of a command that torchrun or SLURM launched.

    torchrun's store exists before the Trainer, and under SLURM the first process opens a store at
    once. So wrong options or a missing file on one machine also end the other processes, which
    would otherwise wait.
    """
    rank = early_rank()
    if rank is None:
        yield
        return
    _shared.append(rank)
    try:
        with _end_together(rank):
            yield
    finally:
        _shared.clear()


@contextmanager
def _end_together(rank: int) -> Iterator[None]:
    watch = _Watch(rank)
    if rank == 0:
        watch.connect()  # under SLURM this opens the store for the others
    watch.start()
    try:
        yield
    except Stopped:  # a signal stopped all processes at the same step: no failure
        raise
    except Exception as error:
        watch.stopped.set()  # this process ends by its own error, even if others fail as well
        watch.report(error)
        raise
    finally:
        watch.stopped.set()


class _Watch(threading.Thread):
    def __init__(self, rank: int) -> None:
        super().__init__(daemon=True, name="failure-watch")
        self.rank = rank
        self.stopped = threading.Event()
        self._store: Any = None

    def connect(self) -> Any:
        """Return the store; None while it cannot be reached."""
        self._store = self._store or _connect()
        return self._store

    def run(self) -> None:
        """Check for another process's failure, and end this process if there is one."""
        while not self.stopped.wait(POLL):
            if self.connect() is None:
                continue
            try:
                if not self._store.check([KEY]):
                    continue
                rank, code, said = self._store.get(KEY).decode().split("\n", 2)
            except (RuntimeError, ValueError):  # the store is gone with the first process
                return
            if int(rank) == self.rank or self.stopped.is_set():
                return
            if self.rank == 0:
                say(f"newsrec: error: {said}", error=True)  # may come from another machine
                sys.stderr.flush()
            os._exit(int(code))

    def report(self, error: Exception) -> None:
        """Tell the other processes that this one fails, and why."""
        store = self.connect()
        if store is None:
            return
        code = 2 if isinstance(error, UserError) else 1
        said = str(error) or type(error).__name__
        message = f"process {self.rank} on {socket.gethostname()}: {said}"
        with suppress(RuntimeError):
            # Only the first failure is kept: later ones follow from it.
            store.compare_set(KEY, "", f"{self.rank}\n{code}\n{message}")
            time.sleep(GRACE)


def _connect() -> Any:
    """Return a new connection to the processes' store; None while there is no store."""
    try:
        if os.environ.get(SERVED) != "True":
            if early_rank() is not None:
                return early_store(CONNECT)
            if not torch.distributed.is_initialized():
                return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return torch.distributed.TCPStore(address, port, is_master=False, timeout=CONNECT)
    except (KeyError, ValueError, RuntimeError):
        return None


def _disks(trainer: Trainer, module: Any, data: Any) -> str:
    states = 0
    if module.tune_layers != -1 and data.frozen_states != "none":
        tokens = int(data.catalogue.token_lengths[distinct_rows(data.catalogue)].sum())
        size = torch.bfloat16 if data.frozen_states == "bf16" else torch.float32
        states = tokens * module.recommender.news_encoder.plm.config.hidden_size * size.itemsize
    sizes = [(p.nbytes, p.requires_grad) for p in module.parameters()]
    checkpoint = sum(size * (3 if trained else 1) for size, trained in sizes)  # AdamW keeps two
    return needs_on_disk(data.root, Path(trainer.default_root_dir), states, checkpoint)


class SameData(Callback):
    """Refuses to train on machines whose data folders differ."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the fingerprints of all processes' data; UserError on each if they differ."""
        if trainer.world_size == 1:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.num_nodes > 1:
            log.info("%s", _disks(trainer, pl_module, data))
        own = {name: data.data.split(name).fingerprint for name in data.windows()}
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, (socket.gethostname(), str(data.root), own))
        first_host, first_root, first = everyone[0]
        for rank, (host, root, other) in enumerate(everyone):
            if other != first:
                names = [name for name in first if other.get(name) != first[name]]
                raise UserError(
                    f"data.root: {' and '.join(names) or 'the splits'} of {root} on {host} "
                    f"(process {rank}) differ from those of {first_root} on {first_host}. Copy the "
                    "same files to all machines."
                )
