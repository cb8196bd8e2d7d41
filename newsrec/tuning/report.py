"""Reports what a search found: a table, a picture and ``trials.csv``."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from newsrec.files import write_bytes, write_text
from newsrec.report.tables import Cell, bold, print_tables, table
from newsrec.tuning.space import Space, as_key
from newsrec.tuning.trial import Trial, Tuning, best_of, shown

SHOWN = 5
"""Most trials in the table on the terminal; ``trials.csv`` has them all."""
COLUMNS = 3
"""Pictures in a row."""


def print_tuning(tuning: Tuning) -> None:
    """Print the best trials side by side, the best one first, and the importance of the options."""
    best = _ranked(tuning)[:SHOWN]
    aucs = ["-" if math.isnan(trial.auc) else f"{trial.auc:.4f}" for trial in best]
    rows: list[Sequence[Cell]] = [bold("val/auc", *aucs), ["", *(trial.state for trial in best)]]
    rows.append(["validations", *(str(trial.validations) for trial in best)])
    for name in tuning.best.options:
        share = tuning.importance.get(name)
        known = [] if share is None else [f"{share:.2f}"]
        rows.append([name, *(shown(trial.options[name]) for trial in best), *known])
    heads = ["", *(f"trial {trial.number}" for trial in best)]
    print_tables(table([*heads, *(["importance"] if tuning.importance else [])], rows))


def _ranked(tuning: Tuning) -> list[Trial]:
    """Return complete trials before others, by their AUC."""
    return sorted(
        tuning.trials,
        key=lambda t: (t.state != "complete", -(-math.inf if math.isnan(t.auc) else t.auc)),
    )


def write_trials(tuning: Tuning, path: Path) -> None:
    """Write a row for each trial, the best one first."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = list(tuning.best.options)
    writer.writerow(["trial", "state", "val/auc", "validations", "seconds", *names, "error"])
    for trial in _ranked(tuning):
        auc = "" if math.isnan(trial.auc) else trial.auc
        values = [as_key(trial.options[name]) for name in names]
        row = [trial.number, trial.state, auc, trial.validations, trial.seconds, *values]
        writer.writerow([*row, trial.error])
    write_text(path, text.getvalue())


def draw_tuning(tuning: Tuning, space: Space, path: Path) -> None:
    """Draw the AUC of all trials in order, and against the values of each option."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 1 + math.ceil(len(space) / COLUMNS)
    figure = Figure(figsize=(10, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, COLUMNS)
    done = [trial for trial in tuning.trials if trial.state != "failed"]
    _draw_history(figure.add_subplot(grid[0, :]), tuning, done)
    for i, (name, entry) in enumerate(space.items()):
        axes = figure.add_subplot(grid[1 + i // COLUMNS, i % COLUMNS])
        _draw_slice(axes, done, name, entry)
        share = tuning.importance.get(name)
        axes.set_title(name if share is None else f"{name} (importance {share:.2f})", fontsize=9)
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_bytes(path, picture.getvalue())


def _draw_history(axes: Any, tuning: Tuning, done: list[Trial]) -> None:
    for state, marker in (("complete", "o"), ("pruned", "x")):
        points = [(trial.number, trial.auc) for trial in done if trial.state == state]
        if points:
            axes.plot(*np.array(points).T, marker, color="tab:blue", label=state)
    best = [best_of(done[: i + 1]) for i in range(len(done))]
    line = [(t.number, b.auc) for t, b in zip(done, best, strict=True) if b is not None]
    axes.step(*np.array(line).T, where="post", color="tab:orange", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("val/auc")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False, loc="lower right")


def _draw_slice(axes: Any, done: list[Trial], name: str, entry: Any) -> None:
    from matplotlib.ticker import NullFormatter

    values = [trial.options[name] for trial in done]
    if isinstance(entry, list):
        keys = [as_key(choice) for choice in entry]
        places = [keys.index(as_key(value)) for value in values]
        axes.set_xticks(range(len(keys)), [str(key) for key in keys])
        axes.set_xlim(-0.5, len(keys) - 0.5)
    else:
        places = values
        low, high = entry["low"], entry["high"]
        if entry.get("log"):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            factor = (high / low) ** 0.05
            axes.set_xlim(low / factor, high * factor)
        else:
            margin = 0.05 * (high - low)
            axes.set_xlim(low - margin, high + margin)
    for state, marker in (("complete", "o"), ("pruned", "x")):
        pairs = zip(places, done, strict=True)
        points = [(place, trial.auc) for place, trial in pairs if trial.state == state]
        if points:
            axes.plot(*np.array(points).T, marker, color="tab:blue", alpha=0.7)
