"""Resumes a run on machines without a shared disk, from the first machine's files."""

import hashlib
import itertools
import logging
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from newsrec.console import is_first_process
from newsrec.errors import UserError
from newsrec.files import file_hash, write_bytes
from newsrec.training.checkpoint.folders import LISTED, recover
from newsrec.training.processes.agreement import SERVED, decided_by_first
from newsrec.training.processes.run_lock import RunLock

log = logging.getLogger(__name__)

FILES = ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
"""Files of a run folder that a resumed run needs."""
CHUNK = 32 << 20
"""Bytes sent through torchrun's store at once."""
PATIENCE = timedelta(minutes=10)
"""Time-out of one request to the store; waiting for another process asks again."""


def share_run_folder(output: Path) -> None:
    """Copy the run folder of a resumed run from the first machine to the same path on all others.

    torchrun's agents keep a store that every process can reach before anything else is set up. The
    first process writes the hashes of the files in its run folder to the store. The first process
    of each other machine copies the files that are missing or different there, and the machine's
    other processes wait for it. A checkpoint that the first machine lacks is an error, so that all
    machines start a new run or all resume. Without torchrun, or on one machine, nothing happens.
    """
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) < 2 or os.environ.get(SERVED) != "True":
        return
    import torch

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = torch.distributed.TCPStore(address, port, is_master=False, timeout=PATIENCE)
    prefix = f"newsrec/run/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store: Any = torch.distributed.PrefixStore(prefix, agent)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    machine, machines = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
    if rank == 0:
        for name in FILES:
            path = output / name
            store.set(f"{name}/hash", file_hash(path) if path.is_file() else "")
        for other in range(1, machines):
            wanted = _get(store, f"wanted/{other}").decode().split()
            _send(torch.distributed.PrefixStore(f"to/{other}", store), output, wanted)
            refused = _get(store, f"done/{other}").decode()
            if refused:
                raise UserError(refused)
    elif local_rank == 0:
        hashes = {name: _get(store, f"{name}/hash").decode() for name in FILES}
        wanted = [n for n, own in hashes.items() if own and _hash(output / n) != own]
        stale = [n for n, own in hashes.items() if not own and n != FILES[0] and _hash(output / n)]
        refused = ""
        if stale:
            refused = (
                f"{output / stale[0]} on {socket.gethostname()} (machine {machine}) is of a run "
                "that the first machine does not have. Remove it there, or choose another --output."
            )
        lock = RunLock(output)
        if wanted and not refused:  # another run may use this machine's folder
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
        _get(store, f"ready/{machine}")


def is_resumed(output: Path, num_nodes: int) -> bool:
    """Return whether ``--ckpt_path auto`` resumes from ``last.ckpt``, the same on all processes.

    The first process decides. Otherwise, on machines without a shared disk, one might resume and
    another start a new run, and both would wait forever. A machine whose ``last.ckpt`` differs from
    the first machine's is refused.
    """
    last = output / "checkpoints" / "last.ckpt"
    recover(last.parent)
    theirs = decided_by_first("last_checkpoint", lambda: _hash(last) or "none", num_nodes)
    if not is_first_process() and (_hash(last) or "none") != theirs:
        has = f"does not have the first process's {last}"
        if theirs == "none":
            has = f"has a {last}, which the first process does not have"
        raise UserError(
            f"{socket.gethostname()} {has}. If the machines share no disk, start the run with "
            "torchrun, which copies the first machine's files to the others, or copy it."
        )
    return theirs != "none"


def needs_on_disk(root: Path, output: Path, states: int, checkpoint: int) -> str:
    """Return a text on the disk space that each machine needs; states and checkpoint in bytes."""
    kept = f", and room for {states / 2**30:.1f} GiB of states beside it" if states else ""
    return (
        f"disks: each machine needs the data at {root}{kept}. Only the first machine writes "
        f"{output}: two checkpoints of {checkpoint / 2**30:.1f} GiB, and a third while one is "
        "written. A resumed run needs them on each machine, where torchrun copies them."
    )


def _hash(path: Path) -> str | None:
    listed = path / LISTED  # of a checkpoint in a folder of parts
    return next((file_hash(file) for file in (path, listed) if file.is_file()), None)


def _send(store: Any, output: Path, names: list[str]) -> None:
    """Put files into the store of one receiver, piece by piece; delete each once received."""
    for name in names:
        with (output / name).open("rb") as file:
            pieces = itertools.chain(iter(lambda: file.read(CHUNK), b""), [b""])
            for number, piece in enumerate(pieces):
                store.set(f"{name}/{number}", piece)
                _get(store, f"{name}/{number}/taken")
                store.delete_key(f"{name}/{number}")
                store.delete_key(f"{name}/{number}/taken")


def _get(store: Any, key: str) -> bytes:
    """Wait for a key without a time-out: hashing and sending large files may take hours.

    If another process fails, ``fail_together`` ends this process.
    """
    from torch.distributed import DistStoreError

    while True:
        try:
            value: bytes = store.get(key)
            return value
        except DistStoreError:  # the store's own time-out
            continue


def _receive(store: Any, output: Path, names: list[str], hashes: dict[str, str]) -> None:
    for name in names:
        pieces: list[bytes] = []
        while True:
            key = f"{name}/{len(pieces)}"
            piece = _get(store, key)
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
