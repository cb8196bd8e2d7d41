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
from torch.distributed import PrefixStore

from newsrec.console import say
from newsrec.data.states import distinct_rows
from newsrec.data.team import ALONE, Team
from newsrec.errors import UserError
from newsrec.training.checkpoint.saving import Stopped
from newsrec.training.processes.agreement import (
    RESTART,
    SERVED,
    SIGN,
    SILENCE,
    early_rank,
    early_store,
)
from newsrec.training.processes.share_folder import needs_on_disk

log = logging.getLogger(__name__)

KEY = f"newsrec/failed/{RESTART}"
"""Key of a failure in the store."""
LEFT = "left"
"""What a process says there once its work has ended without a failure."""
POLL = 1.0
"""Seconds between two checks for another process's failure."""
CONNECT = timedelta(seconds=10)
"""How long one attempt to reach the store may take."""
TRIES = 6
"""Attempts to reach a store that should exist."""
GRACE = 3 * POLL
"""Seconds that a failing process stays alive, so that the others learn of the failure."""
START = 1800.0
"""Seconds within which a process must give its first sign of life."""
LAST = 30.0
"""Seconds that a process may go on after the store is gone, which ends with the first process."""


_watching: list["_Watch"] = []
"""The thread that watches the other processes; empty outside ``fail_together``."""


@contextmanager
def fail_together(trainer: Trainer) -> Iterator[None]:
    """End all processes within seconds if any of them fails, with the message of the failure.

    Otherwise the others wait in their next collective operation, with NCCL for half an hour. A
    separate thread watches the store through which the processes formed their group, so no
    collective operation is needed. The thread also finds killed processes, since each process
    checks the next one: within seconds on the same machine, within minutes on another one.
    """
    if trainer.world_size == 1 or _watching:
        yield
        return
    with _end_together(trainer.global_rank, trainer.world_size):
        yield


def watched_store() -> Any:
    """Return the processes' store; None outside ``fail_together``, and if there is none.

    A wait in this store ends if another process fails, since ``fail_together`` then ends this one.
    """
    if not (_watching and torch.distributed.is_initialized() and "MASTER_ADDR" in os.environ):
        return None
    return _reach(_watching[0])


def early_team() -> Team:
    """Return all processes before they form their group.

    Outside ``fail_together_from_the_start`` they have no store yet, and each is a team of its own.
    """
    place = early_rank()
    if not _watching or place is None or torch.distributed.is_initialized():
        return ALONE
    return Team(PrefixStore(f"newsrec/early/{RESTART}", _reach(_watching[0])), *place)


def _reach(watch: "_Watch") -> Any:
    for _ in range(TRIES):
        store = watch.connect()
        if store is not None:
            return store
        time.sleep(POLL)
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    raise UserError(
        f"The processes' store at {place} cannot be reached. Check that the first process is "
        "running and that this machine can connect to it, then start all processes again."
    )


@contextmanager
def fail_together_from_the_start() -> Iterator[None]:
    """Do what ``fail_together`` does from the start of a command that torchrun or SLURM launched.

    torchrun's store exists before the Trainer, and under SLURM the first process opens a store at
    once. So wrong options or a missing file on one machine also end the other processes, which
    would otherwise wait.
    """
    place = early_rank()
    if place is None:
        yield
        return
    with _end_together(*place):
        yield


@contextmanager
def _end_together(rank: int, world_size: int) -> Iterator[None]:
    watch = _Watch(rank, world_size)
    if rank == 0:
        watch.connect()  # under SLURM this opens the store for the others
    watch.start()
    _watching.append(watch)
    try:
        yield
    except Stopped:  # a signal stopped all processes at the same step: no failure
        raise
    except Exception as error:
        watch.stopped.set()  # this process ends by its own error, even if others fail as well
        watch.report(error)
        raise
    finally:
        _watching.clear()
        watch.stopped.set()
        watch.join(POLL)  # the thread still tells the store that this process has left


class _Watch(threading.Thread):
    def __init__(self, rank: int, world_size: int = 1) -> None:
        super().__init__(daemon=True, name="failure-watch")
        self.rank = rank
        self.next = (rank + 1) % world_size
        """The process to check. If each process checked all, the store would be too busy."""
        self.stopped = threading.Event()
        self._store: Any = None
        self._signs = 0
        self._last_sign, self._seen_at = "", 0.0

    def connect(self) -> Any:
        """Return the store; None while it cannot be reached.

        Before the store is returned, this process says there that it is alive. So others that wait
        for it notice its end, even if it is killed before the thread looks for the first time.
        """
        if self._store is None and (store := connect_store()) is not None:
            with suppress(RuntimeError):  # the store has ended again; the next call tries again
                self._say_alive(store)
                self._store = store
        return self._store

    def _say_alive(self, store: Any) -> None:
        self._signs += 1
        sign = f"{self._signs}\n{_id_space()}\n{os.getpid()}\n{socket.gethostname()}"
        store.set(f"{SIGN}/{self.rank}", sign)

    def run(self) -> None:
        """Check for another process's failure, and end this process if there is one."""
        self._seen_at = time.monotonic()
        self.connect()  # say at once that this process is alive
        while not self.stopped.wait(POLL):
            if self.connect() is None:
                continue
            try:
                if self.next != self.rank:
                    self._look_after_next()
                if not self._store.check([KEY]):
                    continue
                rank, code, said = self._store.get(KEY).decode().split("\n", 2)
            except (RuntimeError, ValueError):
                # The store ends with the first process, which ends last unless it is killed.
                if not self.stopped.wait(LAST):
                    problem = "the first process has ended before the others"
                    step = "Read its last messages, then start all processes again."
                    say(f"newsrec: error: {problem}. {step}", error=True)
                    os._exit(1)
                return
            if int(rank) == self.rank or self.stopped.is_set():
                return
            if self.rank == 0:
                say(f"newsrec: error: {said}", error=True)  # may come from another machine
                sys.stderr.flush()
            os._exit(int(code))
        if self._signs:
            with suppress(RuntimeError):
                self._store.set(f"{SIGN}/{self.rank}", LEFT)

    def _look_after_next(self) -> None:
        """Say that this process is alive, and report the next one if it is not."""
        self._say_alive(self._store)
        key = f"{SIGN}/{self.next}"
        has_sign = self._store.check([key])
        sign = self._store.get(key).decode() if has_sign else LEFT
        if has_sign and sign != self._last_sign:
            self._last_sign, self._seen_at = sign, time.monotonic()
        if sign == LEFT:
            if not has_sign and time.monotonic() - self._seen_at > START:
                said = f"process {self.next} has not started within {START / 60:.0f} minutes. "
                self._report_next(f"{said}Start all processes at the same time.")
            return
        _, space, pid, host = sign.split("\n")
        if space and space == _id_space():
            ended = not _is_running(int(pid))
        else:
            ended = time.monotonic() - self._seen_at > SILENCE
        if ended:
            said = f"process {self.next} on {host} was killed, perhaps because memory ran out. "
            said += "Free memory there, then start all processes again."
            self._report_next(said)

    def _report_next(self, said: str) -> None:
        self._store.compare_set(KEY, "", f"{self.next}\n1\n{said}")
        if self.next == 0:  # else process 0 prints it
            say(f"newsrec: error: {said}", error=True)

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


def _id_space() -> str:
    """Name the space in which process ids are valid; return an empty text if it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def connect_store() -> Any:
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
