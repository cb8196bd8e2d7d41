"""Machines that share no disk: a run that goes on, goes on from the first machine's files."""

import hashlib
import logging
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from newsrec.console import is_first_process
from newsrec.errors import UserError
from newsrec.files import file_hash, write_bytes
from newsrec.training.processes.agreement import decided_by_first
from newsrec.training.processes.run_lock import RunLock

log = logging.getLogger(__name__)

FILES = ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
"""What a run folder needs for a run to go on."""
CHUNK = 32 << 20
"""Bytes that go through torchrun's store at once."""
PATIENCE = timedelta(minutes=10)


def share_run_folder(output: Path) -> None:
    """Give every machine the first machine's files of a run that goes on.

    torchrun's agents keep a store that every process can reach before anything else is set up. The
    first process says there which files its run folder has, with their hashes; the first process of
    each other machine takes those that it lacks or has otherwise, and the other processes wait for
    it. Files that the first machine lacks do not count anywhere else, so that all machines start
    anew together or go on together. Without torchrun, or on one machine, nothing happens.

    Args:
        output: The run folder, at the same path on all machines.

    Raises:
        UserError: If a machine has a checkpoint there that the first one lacks.
    """
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) < 2 or not _has_store():
        return
    import torch

    store: Any = torch.distributed.PrefixStore(
        f"newsrec/run/{os.environ['TORCHELASTIC_RESTART_COUNT']}",
        torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
            timeout=PATIENCE,
        ),
    )  # fmt: skip
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    machine, machines = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
    if rank == 0:
        for name in FILES:
            path = output / name
            store.set(f"{name}/hash", file_hash(path) if path.is_file() else "")
        for other in range(1, machines):
            wanted = store.get(f"wanted/{other}").decode().split()
            _send(torch.distributed.PrefixStore(f"to/{other}", store), output, wanted)
            refused = store.get(f"done/{other}").decode()
            if refused:
                raise UserError(refused)
    elif local_rank == 0:
        hashes = {name: store.get(f"{name}/hash").decode() for name in FILES}
        wanted = [n for n, own in hashes.items() if own and _hash(output / n) != own]
        stale = [n for n, own in hashes.items() if not own and n != FILES[0] and _hash(output / n)]
        refused = ""
        if stale:
            refused = (
                f"{output / stale[0]} on {socket.gethostname()} (machine {machine}) is of a run "
                "that the first machine does not have. Remove it there, or choose another --output."
            )
        lock = RunLock(output)
        if wanted and not refused:  # another run may be running in this machine's own folder
            try:
                lock.take()
            except UserError as error:
                refused = f"{socket.gethostname()} (machine {machine}): {error}"
        wanted = [] if refused else wanted
        store.set(f"wanted/{machine}", " ".join(wanted))
        try:
            _receive(torch.distributed.PrefixStore(f"to/{machine}", store), output, wanted, hashes)
        finally:
            lock.release()
        store.set(f"done/{machine}", refused)
        store.set(f"ready/{machine}", "1")
        if refused:
            raise UserError(refused)
    else:
        store.get(f"ready/{machine}")


def goes_on(output: Path, num_nodes: int) -> bool:
    """Return whether ``--ckpt_path auto`` goes on from ``last.ckpt``, the same on all processes.

    The first process decides. Otherwise, on machines without a shared disk, one might go on and
    another start anew, and both would wait for ever.

    Args:
        output: The run folder.
        num_nodes: The Trainer's.

    Raises:
        UserError: On a machine that has not the first one's file.
    """
    last = output / "checkpoints" / "last.ckpt"
    theirs = decided_by_first("last_checkpoint", lambda: _hash(last) or "none", num_nodes)
    if not is_first_process() and (_hash(last) or "none") != theirs:
        has = f"does not have the first process's {last}"
        if theirs == "none":
            has = f"has a {last}, which the first process does not have"
        raise UserError(
            f"{socket.gethostname()} {has}. Without a disk that all machines share, start by "
            "torchrun, which hands the first machine's files to the others, or copy it."
        )
    return theirs != "none"


def needs_on_disk(root: Path, output: Path, states: int, checkpoint: int) -> str:
    """Return a sentence on what each of several machines needs on its disk.

    Args:
        root: The data folder.
        output: The run folder.
        states: Bytes of kept states.
        checkpoint: Bytes of a checkpoint.
    """
    kept = f", and room for {states / 2**30:.1f} GiB of states beside it" if states else ""
    return (
        f"disks: each machine needs the data at {root}{kept}. The first machine alone writes "
        f"{output}: two checkpoints of {checkpoint / 2**30:.1f} GiB, and a third while one is "
        "written. A run that goes on needs them on each machine, where torchrun copies them."
    )


def _has_store() -> bool:
    """Return whether torchrun's agent keeps a store that this process can reach."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _hash(path: Path) -> str | None:
    return file_hash(path) if path.is_file() else None


def _send(store: Any, output: Path, names: list[str]) -> None:
    """Put files into the store piece by piece; a piece goes when it was taken.

    Args:
        store: One that a single machine takes from: pieces of two would be mistaken.
        output: The run folder.
        names: The files, relative to it.
    """
    for name in names:
        with (output / name).open("rb") as file:
            number = 0
            while piece := file.read(CHUNK):
                store.set(f"{name}/{number}", piece)
                store.get(f"{name}/{number}/taken")
                store.delete_key(f"{name}/{number}")
                store.delete_key(f"{name}/{number}/taken")
                number += 1
            store.set(f"{name}/{number}", b"")
            store.get(f"{name}/{number}/taken")
            store.delete_key(f"{name}/{number}")
            store.delete_key(f"{name}/{number}/taken")


def _receive(store: Any, output: Path, names: list[str], hashes: dict[str, str]) -> None:
    """Take files from the store and write them, whole and checked."""
    for name in names:
        pieces: list[bytes] = []
        while True:
            key = f"{name}/{len(pieces)}"
            piece = store.get(key)
            store.set(f"{key}/taken", "1")
            if not piece:
                break
            pieces.append(piece)
        content = b"".join(pieces)
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise UserError(f"{output / name}: what came from the first machine is damaged.")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(output / name, content)
        log.info("%s: taken from the first machine", output / name)
