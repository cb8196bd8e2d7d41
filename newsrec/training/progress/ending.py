"""Messages for runs that end without a validation, or that were finished before they started."""

import logging
from pathlib import Path

from lightning import Trainer

from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.lightning_internals import epochs_done

log = logging.getLogger(__name__)


def how_it_ended(trainer: Trainer, last: Path) -> str:
    """Describe the end of a run without a best checkpoint; ``last.ckpt`` may not exist either."""
    if getattr(trainer, "fast_dev_run", False):
        steps = f"{trainer.global_step} step{'s' * (trainer.global_step != 1)}"
        return (
            f"A trial run (trainer.fast_dev_run): {steps} of training and validation went well. "
            "It keeps nothing; leave the option out to train."
        )
    kept = f"Last checkpoint: {last}" if last.exists() else "There is no checkpoint."
    return f"No validation was reached. {kept}"


def say_if_finished(trainer: Trainer, ckpt_path: str | None) -> None:
    """Warn if a run to be resumed has done all its steps or epochs, and say how to train on.

    A new run, whose ``ckpt_path`` is None, gets no warning.
    """
    if ckpt_path is None:
        return
    checkpoint = read_checkpoint(ckpt_path, in_parts=True)
    steps = checkpoint["global_step"]
    epochs = epochs_done(checkpoint)
    most_epochs, most_steps = trainer.max_epochs, trainer.max_steps
    if 0 < most_steps <= steps:
        done, option = f"{steps:,} of {most_steps:,} steps", f"max_steps {2 * most_steps}"
    elif most_epochs is not None and 0 < most_epochs <= epochs:
        done, option = f"{epochs} of {most_epochs} epochs", f"max_epochs {2 * most_epochs}"
    else:
        return
    log.warning(
        "This run is finished: %s are done, so no step is left. To train on, raise the number, for "
        "example --trainer.%s; the learning rate then follows the longer schedule from there.",
        done,
        option,
    )
