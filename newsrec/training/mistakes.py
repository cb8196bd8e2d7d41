"""Error messages for Trainer options that cannot work; Lightning's own message where it has one."""

import math
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from newsrec.errors import UserError

CPU_HINT = (
    " On a machine without GPU use --trainer.accelerator cpu --trainer.devices 1 "
    "--trainer.precision 32-true."
)
NO_GPU = re.compile(
    r"no (supported )?gpu|accelerator is not available|machine only has|not compiled with cuda|"
    r"(cuda|gpus?) (is|are) not available",
    re.I,
)
"""Messages of Lightning and PyTorch when a requested device is missing."""
SEEDS = 2**32
"""Seeds are below this number, a limit of NumPy's old generator."""


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse Trainer options that Lightning accepts, but that fail later or train nothing."""
    for name in ("accumulate_grad_batches", "max_steps", "max_epochs"):
        value = options[name]
        if value is not None and (value == 0 or value < -1):
            raise UserError(f"trainer.{name} is {value}; it must be at least 1.")
    for name in ("check_val_every_n_epoch", "log_every_n_steps"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"trainer.{name} is {options[name]}; it must be at least 1.")
    if options["val_check_interval"] == 0:
        raise UserError(
            "trainer.val_check_interval is 0; it is a number of batches, or a share of an epoch. "
            "--data.val none leaves validation out."
        )
    if options["limit_train_batches"] == 0:
        raise UserError(
            "trainer.limit_train_batches is 0, which trains nothing. Leave it out, or score a "
            "checkpoint by `python -m newsrec evaluate`."
        )
    clip = options["gradient_clip_val"]
    if clip is not None and not 0 <= clip < math.inf:
        raise UserError(
            f"trainer.gradient_clip_val is {clip}; it is a norm, above 0, or 0 for no clipping."
        )
    if options["barebones"]:
        raise UserError(
            "trainer.barebones writes no logs and no checkpoints, so the run leaves nothing. Leave "
            "it out; --trainer.enable_progress_bar false saves some time."
        )
    if options["enable_checkpointing"] is False:
        raise UserError(
            "trainer.enable_checkpointing is false, but a run without checkpoints leaves nothing. "
            "Leave it out; --trainer.fast_dev_run true is a trial that keeps nothing."
        )


def check_scoring(options: Mapping[str, Any]) -> None:
    """Refuse Trainer options that would score only a part of a split, or nothing."""
    for name in ("limit_predict_batches", "fast_dev_run", "overfit_batches", "barebones"):
        value = options[name]
        limit = name == "limit_predict_batches"  # its 0 means no batch, and 1.0 all
        chosen = value is not None and (type(value) is int or value != 1) if limit else bool(value)
        if chosen:
            raise UserError(
                f"--trainer.{name} is {value}, but evaluate must score all of a split: metrics and "
                "prediction.zip need every impression. Leave it out."
            )


def check_seed(seed: int | bool | None) -> None:
    """Refuse a seed that the generators do not accept; None and True are accepted."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise UserError(
            f"seed_everything is {seed}; it must be from 0 to {SEEDS - 1}, or true for a random "
            "one."
        )


@contextmanager
def trainer_mistakes() -> Iterator[None]:
    """Turn Lightning's errors about impossible Trainer options into a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, TypeError) and not _raised_by_lightning(error):
            raise
        hint = CPU_HINT if NO_GPU.search(said) else ""
        raise UserError(f"trainer: {said.removesuffix('.')}.{hint}") from error


@contextmanager
def late_mistakes() -> Iterator[None]:
    """Turn Lightning's errors about Trainer options that contradict the data into ``UserError``."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise UserError(
            f"trainer: {' '.join(str(error).split())} On the command line: "
            "--trainer.check_val_every_n_epoch null."
        ) from error


def _raised_by_lightning(error: BaseException) -> bool:
    """Return whether Lightning itself raised an error, as opposed to a wrong call of Lightning."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "/lightning/" in last.filename.replace("\\", "/")
