"""Run commands on a disk that is full after so many bytes, in a process that may hang or crash.

``python -m hard.full_disk FOLDER CHECKPOINT KIND SIZE...`` prints a line of JSON for each size. No
file grows beyond the size, which to a writer is a full disk.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import sys
from pathlib import Path

import torch

from newsrec.__main__ import main as newsrec
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.training.checkpoint.saving import AtomicCheckpointIO

BEFORE = {"weights": torch.ones(100)}


def compile_data(folder: Path, checkpoint: Path) -> str:
    """Compile the data folder; nothing half made may stay."""
    cache = folder / "mind" / ".newsrec"
    shutil.rmtree(cache, ignore_errors=True)
    try:
        open_mind(folder / "mind")
    except (UserError, OSError) as error:
        lift()
        left = sorted(path.name for path in cache.glob("*") if path.name != "lock")
        if left:
            return f"left {left}"
        open_mind(folder / "mind")
        return "said" if isinstance(error, UserError) else f"failed: {error!r}"
    lift()
    return "whole" if len(open_mind(folder / "mind").splits) == 3 else "splits are missing"


def save(folder: Path, checkpoint: Path) -> str:
    """Save a checkpoint over a small one, which stays if that fails."""
    run = folder / "saved"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    torch.save(BEFORE, run / "last.ckpt")
    limit(int(os.environ["SIZE"]))
    io_ = AtomicCheckpointIO()
    io_.save_checkpoint(torch.load(checkpoint, weights_only=True), run / "last.ckpt")
    lift()
    there = torch.load(run / "last.ckpt", weights_only=True)
    if [path.name for path in run.iterdir()] != ["last.ckpt"]:
        return f"left {[path.name for path in run.iterdir()]}"
    if io_.failed is None:
        return "whole" if "state_dict" in there else "nothing was saved"
    return "said" if "weights" in there else "what was there is gone"


def command(*argv: str) -> str:
    """Run a command whose --output is a new folder, whole or absent."""
    output = Path(argv[-1])
    shutil.rmtree(output, ignore_errors=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            newsrec([*argv])
        code = 0
    except SystemExit as stop:
        code = stop.code
    lift()
    left = [path.name for path in output.parent.glob(f".{output.name}*")]
    if left:
        return f"left {left}"
    if code == 0:
        return "whole" if any(output.iterdir()) else "nothing is there"
    if code != 2 or "Traceback" in said.getvalue():
        return f"failed with {code}: {said.getvalue()[-500:]}"
    if output.exists():
        return f"a part is there: {[path.name for path in output.iterdir()]}"
    return "said"


def evaluate(folder: Path, checkpoint: Path) -> str:
    """Score a split at random."""
    where = [f"--data.root={folder / 'mind'}", "--split=dev", "--scores=true"]
    where.append("--trainer.accelerator=cpu")
    return command("evaluate", "--scorer=random", *where, "--output", str(folder / "results"))


def simulate(folder: Path, checkpoint: Path) -> str:
    """Write a world."""
    return command("simulate", "--output", str(folder / "world"))


def export(folder: Path, checkpoint: Path) -> str:
    """Export a checkpoint."""
    return command("export", "--ckpt_path", str(checkpoint), "--output", str(folder / "export"))


KINDS = {"compile": compile_data, "save": save, "evaluate": evaluate, "simulate": simulate,
         "export": export}  # fmt: skip


def limit(size: int) -> None:
    """Let no file grow beyond a size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def lift() -> None:
    """Let files grow again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main(folder: str, checkpoint: str, kind: str, *sizes: str) -> None:
    """Try the sizes."""
    report = os.fdopen(os.dup(1), "w")
    for size in map(int, sizes):
        os.environ["SIZE"] = str(size)
        if kind != "save":
            limit(size)
        try:
            outcome = KINDS[kind](Path(folder), Path(checkpoint))
        except BaseException as error:
            outcome = f"failed: {error!r}"
        lift()
        print(json.dumps([size, outcome]), file=report, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
