"""One training with one set of options, and the callback that lets it end early."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer

TRIALS = "trials"


class Trial(NamedTuple):
    """One training with one set of options."""

    number: int
    state: str
    """complete, pruned or failed."""
    auc: float
    """Best ``val/auc``; NaN if the trial failed."""
    validations: int
    seconds: float
    options: dict[str, Any]
    error: str
    """Why it failed, or empty."""


class Tuning(NamedTuple):
    """Result of a search."""

    output: Path
    trials: list[Trial]
    """All trials in order, without those that were stopped."""
    importance: dict[str, float]
    """Importance of each option; empty after fewer than ``ENOUGH`` complete trials."""

    @property
    def best(self) -> Trial:
        """The complete trial with the highest ``val/auc``; the first of equal ones."""
        found = best_of(self.trials)
        assert found is not None
        return found

    def folder(self, trial: Trial) -> Path:
        """Return the run folder of a trial."""
        return trial_folder(self.output, trial.number)


class AucReport(Callback):
    """Tells Optuna each ``val/auc``, and ends the run early if the pruner asks for it.

    A run that ends early writes its checkpoints, as after its last epoch. The pruner is not asked
    in the last epoch, since that would save no time.
    """

    def __init__(self, trial: Any) -> None:
        self.trial = trial
        self.values: list[float] = []
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell Optuna the value, and ask the pruner."""
        value = trainer.callback_metrics.get("val/auc")
        if trainer.sanity_checking or value is None:
            return
        self.values.append(float(value))
        self.trial.report(self.values[-1], len(self.values))
        is_last = 0 < (trainer.max_epochs or -1) <= trainer.current_epoch + 1
        if not is_last and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """Return the complete trial with the highest ``val/auc``, or None if none is complete."""
    complete = (trial for trial in trials if trial.state == "complete")
    return max(complete, key=lambda trial: trial.auc, default=None)


def trial_folder(output: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return output / TRIALS / f"{number:03d}"


def shown(value: Any) -> str:
    """Return the value of an option for a table: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe(options: dict[str, Any]) -> str:
    """Return options in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in options.items())
