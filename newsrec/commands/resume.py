"""Resume a run: take options, checkpoint, threads and precision from its folder."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from newsrec.commands.written_options import Written
from newsrec.training.checkpoint.read import (
    hyper_parameters,
    plain,
    read_checkpoint,
    resolve_checkpoint,
)
from newsrec.training.resume import LINKS, Resumed, resumed

log = logging.getLogger(__name__)


def run_config(given: list[str], written: Sequence[Written]) -> Path | None:
    """Return the ``config.yaml`` of the run to resume.

    None if the command line does not resume the run in ``--output``, the run has no such file, or
    the command line gives a config of its own.
    """
    values = {option.key: option.value for option in written}
    if values.get("ckpt_path") not in ("last", "best", "auto") or "output" not in values:
        return None
    path = Path(values["output"]) / "config.yaml"
    options = {arg.partition("=")[0] for arg in given}
    # An appending option such as --trainer.callbacks+= is already in config.yaml and would append a
    # second time.
    again = {"--config", "-c"} & options or any(option.endswith("+") for option in options)
    return None if again or not path.is_file() else path


def resume(config: Namespace, output: Path, written: Collection[str]) -> Resumed:
    """Fill in options from the checkpoint to resume, and refuse options that contradict it.

    Without this, Lightning silently prefers the checkpoint's options to the given ones. ``written``
    are keys that the command line or a file sets.
    """
    config.ckpt_path = str(resolve_checkpoint(config.ckpt_path, output))
    checkpoint = read_checkpoint(config.ckpt_path, in_parts=True)
    _take_unwritten(config, checkpoint, written)
    given = {part: config[part].as_dict() for part in ("model", "data")}
    found = resumed(checkpoint, config.ckpt_path, **given, threads=config.threads)
    if found.precision is not None and config.model.precision == "auto":
        config.model.precision = found.precision
    _report_trainer_changes(config, output / "config.yaml")
    return found


def _take_unwritten(
    config: Namespace, checkpoint: dict[str, Any], written: Collection[str]
) -> None:
    """Set options that the user did not give to the values of the resumed run, and log changes."""
    for part in ("model", "data"):
        for name, stored in hyper_parameters(checkpoint, part).items():
            key = f"{part}.{name}"
            by_hand = any(f"{option}.".startswith(f"{key}.") for option in written)
            if name not in config[part] or key in LINKS or by_hand:
                continue
            shape = isinstance(stored, dict)
            now = config[part][name].as_dict() if shape else config[part][name]
            if plain(now) == plain(now | stored if shape else stored):
                continue
            log.info("%s is %s, as in the run that is resumed", key, stored)
            config[part][name] = Namespace(**now | stored) if shape else stored
    for target, source in LINKS.items():
        config[target] = config[source]


def _report_trainer_changes(config: Namespace, path: Path) -> None:
    if not path.is_file():
        return
    before = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("trainer", {})
    for name, value in config.trainer.items():
        if isinstance(value, str | int | float | None) and before.get(name, value) != value:
            log.info("trainer.%s is %s, %s in the run so far", name, value, before[name])
