"""Error messages for files that are not checkpoints of ``newsrec``, with what to give instead."""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from newsrec.places import looked_for
from newsrec.sniff import kind_of
from newsrec.training.checkpoint.folders import is_folder

GIVE = "Give a file that `python -m newsrec fit` wrote: runs/NAME/checkpoints/best.ckpt."


def missing(path: Path) -> str:
    """Describe a path that is not a checkpoint file: it does not exist, or is a folder."""
    if not path.is_dir():
        return " ".join(filter(None, ["does not exist.", looked_for(path), GIVE]))
    for inner in ("checkpoints/best.ckpt", "best.ckpt", "checkpoints/last.ckpt", "last.ckpt"):
        if (path / inner).is_file():
            return f"is a folder. Give the file in it: {path / inner}."
        if is_folder(path / inner):
            return f"is a folder. Give the checkpoint in it: {path / inner}."
    if (path / "manifest.json").is_file():
        return (
            "is a folder that export wrote, which cannot be trained or evaluated. Give the "
            "checkpoint that it was made from."
        )
    if is_folder(path):
        return (
            "is a folder, into which processes of a run wrote their parts. Make one file of it: "
            f"`python -m newsrec convert-checkpoint {path} --output FILE`."
        )
    if (path / ".metadata").is_file():
        return (
            "is a sharded checkpoint of Lightning, which newsrec does not read. "
            f"Train with --trainer.strategy fsdp2. {GIVE}"
        )
    return f"is a folder, and there is no checkpoint in it. {GIVE}"


def damaged(error: Exception) -> str:
    """Describe a folder of parts that cannot be read."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"cannot be read: {said}. Is the folder whole, as a run with --trainer.strategy "
        "fsdp2_in_parts wrote it?"
    )


def unreadable(path: Path, error: Exception) -> str:
    """Describe a file that torch cannot load as plain weights and values."""
    return f"cannot be read as a checkpoint: {_what_it_is(path, str(error))}"


def _what_it_is(path: Path, said: str) -> str:
    kind = kind_of(path)
    if kind is not None and kind != "a zip":
        return f"it is {kind}. {GIVE}"
    if _has_safetensors_header(path):
        return f"it is in safetensors format, which holds weights without their options. {GIVE}"
    if kind == "a zip":
        if not zipfile.is_zipfile(path):
            return "it was cut off. Is the file whole, as `python -m newsrec fit` wrote it?"
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            return f"it is a TorchScript program. {GIVE}"
        if "data.pkl" not in names:
            return f"it is a zip of other files. {GIVE}"
    found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global) ([\w.]+)", said)
    if found:
        return (
            f"it holds Python objects ({found[1] or found[2]}), which newsrec never loads, because "
            f"they may run code. {GIVE}"
        )
    with path.open("rb") as file:
        if file.read(1) == b"\x80":
            return f"it is a pickle of Python objects. {GIVE}"
    return f"it is damaged, or of another program. {GIVE}"


def not_ours(content: Any) -> str | None:
    """Describe loaded content that ``newsrec fit`` did not write; None if it did."""
    if not isinstance(content, Mapping):
        what = "a single tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        return f"holds {what}, not a checkpoint. {GIVE}"
    if "newsrec" in content:
        return None
    if "pytorch-lightning_version" in content:
        return f"is a Lightning checkpoint of another project. {GIVE}"
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    if content and tensors == len(content):
        return (
            f"holds only {tensors} weights (a state dict), without the options that they were "
            f"trained with. {GIVE}"
        )
    keys = ", ".join(sorted(map(str, content))[:4])
    return f"is another project's checkpoint (it holds {keys or 'nothing'}). {GIVE}"


def _has_safetensors_header(path: Path) -> bool:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(path.stat().st_size, 100_000_000):
            return False
        try:
            return isinstance(json.loads(file.read(size)), dict)
        except ValueError:
            return False
