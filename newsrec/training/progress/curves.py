"""Draws ``curves.png`` during a run: the loss and the validation metrics."""

import csv
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import ArrayLike, NDArray

from newsrec.files import write_bytes
from newsrec.metrics import METRICS
from newsrec.training.callbacks import RunCsv
from newsrec.training.lightning_internals import resumes_validation

log = logging.getLogger(__name__)

NAMES = ("train/loss", *(f"val/{name}" for name in METRICS))
SMOOTHED = 40
"""The smoothed loss averages over about 1 / ``SMOOTHED`` of the run."""
EVERY = 10.0
"""Seconds from one drawing to the next; a drawing takes a third of a second."""


class Curves(Callback):
    """Draws the loss and the validation metrics during a run and at its end."""

    def __init__(self, logger: RunCsv, path: Path) -> None:
        self.logger = logger
        self.path = path
        self.drawn = time.monotonic()

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rewind the log of a resumed run to its checkpoint."""
        again = resumes_validation(trainer)
        self.logger.experiment.forget_after(trainer.global_step, again)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the values logged so far, and draw them unless that was done a moment ago."""
        self.logger.save()
        if time.monotonic() - self.drawn >= EVERY:
            self._draw()

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw all values."""
        self.logger.save()
        self._draw()

    def _draw(self) -> None:
        if self.logger.experiment.metrics_keys:
            draw_curves(Path(self.logger.experiment.metrics_file_path), self.path)
            self.drawn = time.monotonic()


def draw_curves(metrics: Path, path: Path, baseline: tuple[str, float] | None = None) -> None:
    """Draw the loss and the validation metrics of a ``metrics.csv`` against the step.

    The picture is written completely or not at all. ``baseline`` is name and AUC of the best one,
    if known.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = read_series(metrics, NAMES)
    if not series:
        return
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps, losses = series["train/loss"].T
    if len(steps):
        left.plot(steps, losses, color="tab:blue", alpha=0.25, label="train/loss")
        left.plot(steps, smooth(losses), color="tab:blue", label="smoothed")
    for name in METRICS:
        steps, values = series[f"val/{name}"].T
        if len(steps):
            right.plot(steps, values, marker=".", label=f"val/{name}")
    if baseline is not None:
        name, value = baseline
        label = f"AUC of the best baseline, {name}"
        right.axhline(value, color="tab:blue", linestyle="--", label=label)
    for axes, title in ((left, "Training loss (cross-entropy)"), (right, "Validation metrics")):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:  # below the axes, where no curve is
            place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
            axes.legend(**place, ncols=2, fontsize="small", frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())


def smooth(values: ArrayLike) -> NDArray[np.float64]:
    """Return an exponential moving average that starts at the first value ``[points]``."""
    values = np.asarray(values, dtype=np.float64)
    keep = 1 - min(1.0, SMOOTHED / max(len(values), 1))
    result = np.empty_like(values)
    total = weight = 0.0
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        result[i] = total / weight
    return result


def read_series(metrics: Path, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Return the steps and values that were logged under each name ``[points, 2]``.

    If the file cannot be read, a warning is logged and nothing is returned.
    """
    try:
        with metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        pairs = {n: [(float(r["step"]), float(r[n])) for r in rows if r.get(n)] for n in names}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        log.warning("%s cannot be read (%s): no curves are drawn", metrics, error)
        return {}
    return {name: np.array(found, np.float64).reshape(-1, 2) for name, found in pairs.items()}
