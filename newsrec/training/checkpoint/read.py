"""Reads checkpoints, and checks run folders."""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newsrec.aside import MARK
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import MissingModelError, ModelError, UserError
from newsrec.files import require_empty
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.lora import LoraConfig
from newsrec.model.residual import rename_weights, renamed
from newsrec.places import looked_for
from newsrec.training.checkpoint import foreign
from newsrec.training.checkpoint.folders import DamagedFolder, is_folder, read_folder, recover
from newsrec.training.checkpoint.schema import check_checkpoint
from newsrec.training.processes.run_lock import HOLDER, LOCK

CHECKPOINT_FORMAT = 1
"""Version of a checkpoint's content under ``newsrec``; increased if its meaning changes."""

BEFORE: dict[str, dict[str, Any]] = {
    "model": {
        **{"residual": False, "matching": "dot", "lora": {}},
        **{"appeal": False, "abstract_tokens": 0},
    },
    "data": {
        **{"frozen_states": "fp32", "abstract_tokens": 0, "categories": "none"},
        "batches": "random",
    },
}
"""Values for runs from before an option existed, if they differ from the option's default or must
not be contradicted."""


BEGUN = {
    *("config.yaml", "tensorboard", "metrics.csv", "curves.png", "checkpoints", "traceback.txt"),
    *(LOCK, HOLDER, "metrics.damaged.csv"),
}
"""Names of files and folders in a run folder before its first checkpoint."""


def read_checkpoint(
    path: str | Path, in_parts: bool = False, option: str = "--ckpt_path"
) -> dict[str, Any]:
    """Read a checkpoint that ``newsrec fit`` wrote; no code in it is executed.

    With ``in_parts`` it may also be a folder into which several processes wrote their parts.
    Messages name ``option`` as the one that gave the path.
    Returns Lightning's dict: ``state_dict``, ``hyper_parameters``, ``datamodule_hyper_parameters``,
    and our values under ``newsrec``. UserError if ``newsrec fit`` did not write such a file, or no
    model can be built from it.
    """
    _refuse_url(str(path))
    path = Path(path)
    folder, given = in_parts and is_folder(path), f"{option} {path}"
    if not path.is_file() and not folder:
        raise MissingModelError(f"{given} {foreign.missing(path)}")
    try:
        if folder:
            checkpoint = read_folder(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except DamagedFolder as error:
        raise ModelError(f"{given} {foreign.damaged(error)}") from error
    except Exception as error:  # torch raises many types, with no common base
        why = foreign.damaged(error) if folder else foreign.unreadable(path, error)
        raise ModelError(f"{given} {why}") from error
    another = foreign.not_ours(checkpoint)
    if another is not None:
        raise ModelError(f"{given} {another}")
    ours = checkpoint["newsrec"] if isinstance(checkpoint["newsrec"], dict) else None
    if not ours or ours.get("format") != CHECKPOINT_FORMAT:
        found = ours.get("format") if ours else "none"
        raise ModelError(
            f"{given} has newsrec format {found}; this version reads format "
            f"{CHECKPOINT_FORMAT}. Train it again, or use the version of newsrec that wrote it."
        )
    checkpoint = _with_new_names(checkpoint)
    check_checkpoint(checkpoint, path, option)
    return checkpoint


def _with_new_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return an unchecked checkpoint with old names replaced by the current ones."""
    parts = ("hyper_parameters", "datamodule_hyper_parameters", "state_dict")
    found = {
        part: dict(checkpoint[part]) for part in parts if isinstance(checkpoint.get(part), dict)
    }
    if "hyper_parameters" in found:
        found["hyper_parameters"] = renamed(found["hyper_parameters"])
    data = found.get("datamodule_hyper_parameters", {})
    if data.get("on_bad_line") == "skip":
        data["on_bad_line"] = "drop"
    if "group_by_user" in data:
        data["batches"] = "user" if data.pop("group_by_user") else "random"
    if "state_dict" in found:
        rename_weights(found["state_dict"], "recommender.news_encoder.")
    return checkpoint | found


def _refuse_url(ckpt_path: str) -> None:
    """Refuse a URL, which Lightning would load unsafely; ``Path`` would mangle it first."""
    if "://" in ckpt_path:
        raise UserError(
            f"--ckpt_path {ckpt_path} is a URL, and a checkpoint from elsewhere may run code. "
            "Download the file, check where it comes from, and name its path."
        )


def hyper_parameters(checkpoint: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the constructor arguments of the ``model`` or the ``data`` module."""
    key = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}[part]
    stored = {k: v for k, v in checkpoint[key].items() if not k.startswith("_")}
    return BEFORE[part] | stored


def resolve_checkpoint(ckpt_path: str, output: Path) -> Path:
    """Return the file that ``fit --ckpt_path`` names; ``last`` and ``best`` are in ``output``.

    A URL is refused. So is a missing file, with which Lightning would silently start a new run.
    """
    _refuse_url(ckpt_path)
    path = Path(ckpt_path)
    if ckpt_path in ("last", "best"):
        recover(output / "checkpoints")
        path = output / "checkpoints" / f"{ckpt_path}.ckpt"
    if path.is_dir() and not is_folder(path):
        raise MissingModelError(f"--ckpt_path {ckpt_path} {foreign.missing(path)}")
    if not path.exists():
        near = looked_for(path)
        raise MissingModelError(
            f"--ckpt_path {ckpt_path}: there is no {path}. {near}{' ' if near else ''}Name the run "
            "to resume with --output, or leave --ckpt_path out to start a new one."
        )
    return path


def check_run_folder(output: Path) -> None:
    """Refuse to start a run in a folder that is not empty.

    Files of a run that was killed before its first checkpoint do not count.
    """
    saved = [path.name for path in output.glob("checkpoints/*.ckpt")]
    names = {path.name for path in output.iterdir()} if output.is_dir() else {""}
    if {name for name in names if MARK not in name} <= BEGUN and not saved:
        return
    on = "Resume that run with `--ckpt_path last`, choose" if "last.ckpt" in saved else "Choose"
    require_empty(output, f"{on} another --output, or remove the folder.")


def check_same_options(
    checkpoint: dict[str, Any], options: dict[str, dict[str, Any]], ckpt_path: str | Path
) -> None:
    """Refuse options, values under ``model`` and ``data``, that contradict a checkpoint."""
    for part, given in options.items():
        stored = hyper_parameters(checkpoint, part)
        if part == "data":  # in runs of earlier versions, later options had their defaults
            known = inspect.signature(MindDataModule).parameters
            stored = {name: known[name].default for name in known if name in given} | stored
        else:  # the same for later options of the groups
            stored |= {n: asdict(FastformerConfig.of(stored[n])) for n in ("news", "user")}
            stored["lora"] = asdict(LoraConfig.of(stored["lora"]))
        for name, value in given.items():
            if name not in stored or plain(value) == plain(stored[name]):
                continue
            option, now, then = f"{part}.{name}", plain(value), plain(stored[name])
            if isinstance(now, dict) and isinstance(then, dict):
                field = next(f for f in now | then if now.get(f) != then.get(f))
                option, now, then = f"{option}.{field}", now.get(field), then.get(field)
            raise UserError(
                f"{option} is {now}, but {ckpt_path} was trained with {then}. Leave the option as "
                "it was, or train a new run."
            )


def plain(value: Any) -> Any:
    """Return a value with tuples as lists, as JSON would store it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of some weights: names, types and values."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        values: Any = value.detach().cpu().contiguous().flatten()
        found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()
