"""Every touch of the insides of Lightning and its reason; a test fails when one moves.

Read in Lightning 2.6.6; ``pyproject.toml`` allows 2.6 alone. What the data side needs is in
``newsrec/data/lightning_internals.py``.
"""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, convert_inf

__all__ = ["Tqdm", "convert_inf"]
"""The bar's class and its way to write an endless total, which Lightning does not document."""

OVERRIDDEN = ("_dump_config", "_parse_ckpt_path")
"""Methods of ``LightningCLI`` that ``fit`` replaces: one cannot write enums, the other would take a
checkpoint's options over those given."""
LOADING = "[_TrainingEpochLoop].train_dataloader_next"
"""What the profiler calls the wait for a batch; the name holds that of a private class."""


def is_logging(trainer: Trainer) -> bool:
    """Return whether this step's values are logged, and may be fetched from the device.

    The rule is a few lines of counting accumulated batches, which would drift if repeated here.
    """
    return trainer._logger_connector.should_update_logs


def share_no_signals(trainer: Trainer) -> None:
    """Keep Lightning from asking the first process for its signals before every step.

    The host would wait for the device each time. ``LastCheckpoint`` shares signals without.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the batch that just ended made no step of the optimizer."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_last_batch(trainer: Trainer) -> bool:
    """Return whether the batch that just ended is the epoch's last."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validates_next(trainer: Trainer) -> bool:
    """Return whether a validation follows the batch that just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher) and trainer.enable_validation


def batch_number(trainer: Trainer) -> int:
    """Return how many batches of the run come before this one."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def resumes_validation(trainer: Trainer) -> bool:
    """Return whether the run goes on from a checkpoint that was written before a validation."""
    return trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation


def begin_validation(checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint from before a validation say that one was begun; Lightning then runs it."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    total = progress["total"]
    total["ready"] = total["started"] = total["completed"] + 1
    total["processed"] = total["completed"]
    progress["current"] = dict.fromkeys(progress["current"], 0)


def end_validation(checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint say that no validation is begun; after a resumed one Lightning does not."""
    total = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    total["ready"] = total["started"] = total["completed"]


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the epochs that a checkpoint's run has done.

    ``epoch`` in the file is one less: it is written before Lightning counts the epoch as completed.
    """
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def is_due(bar: TQDMProgressBar, done: int, total: float) -> bool:
    """Return whether a progress bar is drawn after so many batches, by its refresh rate."""
    return bar._should_update(done, total)  # type: ignore[arg-type]


def train_bar(bar: TQDMProgressBar) -> Any:
    """Return the bar of the training steps, None before there is one; the property would raise."""
    return bar._train_progress_bar


def open_bars(bar: TQDMProgressBar) -> list[Any]:
    """Return the bars of training and validation, as far as there are any."""
    return [one for one in (bar._val_progress_bar, bar._train_progress_bar) if one is not None]


def known_options(cli: Any, parser: Any) -> list[str]:
    """Return the names of the options that ``fit`` knows, to name one like a misspelt one.

    Args:
        cli: The ``LightningCLI``, which may not have parsed yet.
        parser: Its own parser, where it has not made one for ``fit`` yet.
    """
    parser = getattr(cli, "_subcommand_parsers", {}).get("fit", parser)
    return [action.dest for action in parser._actions]


def trainer_options(cli: Any) -> Any:
    """Return the Trainer's options before it is built."""
    return cli._get(cli.config_init, "trainer")
