"""Progress of a running fit: a bar that fits the terminal, and a line per epoch."""

import logging
import math
import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from tqdm import tqdm

from newsrec.data.lightning_internals import batches_done
from newsrec.training.lightning_internals import (
    Tqdm,
    convert_inf,
    is_due,
    is_logging,
    open_bars,
    train_bar,
)

log = logging.getLogger(__name__)

SHOWN = {
    "train/loss": "loss",
    "val/auc": "val AUC",
    "speed/clicks": "clicks/s",
    "speed/tokens": "tokens/s",
    "speed/news": "news/s",
    "speed/repeats": "repeated",
}
"""Logged names -> names in the bar, the most important first."""


class SpeedBar(TQDMProgressBar):
    """A progress bar with loss, validation AUC and rates, as many as the terminal has room for.

    Values are fetched from the device only at logged steps; Lightning's own bar waits for the
    device in every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fetched: dict[str, float] = {}

    def init_train_tqdm(self) -> "FittingBar":
        """Return the bar of the training steps."""
        return FittingBar(
            desc=self.train_description,
            position=2 * self.process_position,
            disable=self.is_disabled,
        )

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Show the bar; Lightning reports no epoch start to a run resumed within an epoch."""
        super().on_train_start()
        done = batches_done(trainer)
        if done:
            self._begin_epoch(trainer, done)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Restart the bar."""
        self._begin_epoch(trainer, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar; fetch the logged values if the step is logged."""
        if is_logging(trainer):
            self._fetch(trainer)
        bar = self.train_progress_bar
        if is_due(self, batch_idx + 1, bar.total) and not bar.disable:
            bar.n = batch_idx + 1
            self._show(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation's AUC."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._fetch(trainer)
            self._show(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the values that were logged at the end of the epoch."""
        self._show(trainer, pl_module)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """End the bar's line, so the error message starts on its own line."""
        for bar in open_bars(self):
            bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the values shown after the bar, the most important first."""
        shown = {SHOWN[n]: _words(n, self._fetched[n]) for n in SHOWN if n in self._fetched}
        others = super().get_metrics(trainer, pl_module).items()  # logged by other classes
        return shown | {n: str(v) for n, v in others if n not in (*SHOWN, "v_num")}

    def _begin_epoch(self, trainer: Trainer, done: int) -> None:
        bar = self.train_progress_bar
        bar.reset()
        bar.total = convert_inf(self.total_train_batches)
        # Batches done before the run was resumed count neither for the rate nor for the time.
        bar.n = bar.initial = done
        bar.set_description_str(epoch_of(trainer), refresh=False)
        bar.refresh()

    def _fetch(self, trainer: Trainer) -> None:
        logged = trainer.callback_metrics
        self._fetched |= {name: float(logged[name]) for name in SHOWN if name in logged}

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bar = train_bar(self)
        if bar is None or bar.disable:
            return
        if isinstance(bar, FittingBar):
            metrics = self.get_metrics(trainer, pl_module)
            bar.fields = [f"{name} {value}" for name, value in metrics.items()]
        bar.refresh()


class FittingBar(Tqdm):
    """A bar that leaves out its last fields if the terminal is too narrow.

    Args:
        **options: Options of ``tqdm``.
    """

    FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
    WITHOUT_TOTAL = "{desc} {n_fmt} [{elapsed}]{postfix}"
    SHORTEST = 10
    """Minimal width of the bar itself; ``tqdm`` draws it this wide if the width is unknown."""

    def __init__(self, **options: Any) -> None:
        self.fields: list[str] = []
        super().__init__(**options, leave=True, dynamic_ncols=True, smoothing=0, file=sys.stdout)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values that ``tqdm`` draws, with as many fields as there is room for."""
        found = super().format_dict
        found["bar_format"] = self.FORMAT if self.total else self.WITHOUT_TOTAL
        bare = found | {"postfix": None, "ncols": None}
        room = math.inf
        if found["ncols"]:
            room = found["ncols"] - len(self.format_meter(**bare))
        found["postfix"] = ", ".join(fitting(self.fields, room)) or None
        return found


def fitting(fields: list[str], room: float) -> list[str]:
    """Return the first fields that fit, counting a comma and a space for each."""
    kept = []
    for field in fields:
        room -= len(field) + 2
        if room < 0:
            break
        kept.append(field)
    return kept


class EpochLine(Callback):
    """Logs a line per epoch: loss, validation AUC, duration, and time left of the whole run."""

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0
        self._batches = 0
        self._best = -math.inf
        self._start = self._epoch_start = 0.0
        self._steps_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._start = self._epoch_start = time.monotonic()
        self._steps_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss on its device, without waiting."""
        self._loss = self._loss + outputs["loss"].detach().float()
        self._batches += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the line on the first process."""
        mean = self._loss / max(self._batches, 1)
        self._loss, self._batches = 0.0, 0
        if isinstance(mean, Tensor):
            mean = float(trainer.strategy.reduce(mean, reduce_op="mean"))
        parts = [f"loss {mean:.4f}"]
        auc = trainer.callback_metrics.get("val/auc")
        if auc is not None:
            parts.append(self._validation(trainer, float(auc)))
        now = time.monotonic()
        parts.append(f"took {clock(now - self._epoch_start)}")
        self._epoch_start = now
        left = self._left(trainer, now - self._start)
        if left:
            parts.append(f"{clock(left)} left")
        if trainer.is_global_zero:
            with tqdm.external_write_mode():  # above the bar, not in it
                log.info("%s: %s", epoch_of(trainer), ", ".join(parts))

    def _validation(self, trainer: Trainer, auc: float) -> str:
        """Return the AUC and the best one; a resumed run knows the best from its checkpoint."""
        known = [self._best, auc]
        for callback in trainer.checkpoint_callbacks:
            score = getattr(callback, "best_model_score", None)
            if score is not None and getattr(callback, "monitor", None) == "val/auc":
                known.append(float(score))
        self._best = max(known)
        best = "the best so far" if auc == self._best else f"best so far {self._best:.4f}"
        return f"val AUC {auc:.4f} ({best})"

    def _left(self, trainer: Trainer, seconds: float) -> float | None:
        """Estimate the seconds that the run still needs from its steps so far."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        if trainer.should_stop or not math.isfinite(total) or done <= self._steps_before:
            return None
        return seconds * max(total - done, 0) / (done - self._steps_before)


def epoch_of(trainer: Trainer) -> str:
    """Return the current epoch as ``Epoch 1/5``, counted from 1; ``Epoch 1`` if there is no end."""
    number = f"Epoch {trainer.current_epoch + 1}"
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if trainer.max_steps > 0:
        in_all = trainer.num_training_batches / trainer.accumulate_grad_batches
        epochs = min(epochs, math.ceil(trainer.max_steps / max(math.ceil(in_all), 1)))
    return f"{number}/{epochs}" if math.isfinite(epochs) else number


def clock(seconds: float) -> str:
    """Format a duration: ``0:42``, ``12:05``, ``3:07:00``, ``2 d 3:07:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if not (days or hours):
        return f"{minutes}:{rest:02}"
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02}:{rest:02}"


def _words(name: str, number: float) -> str:
    if name == "speed/repeats":
        return f"{number:.0%}"
    if not name.startswith("speed/"):
        return f"{number:.4f}"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
