"""Print metrics on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from newsrec.console import say, terminal
from newsrec.evaluation.ceiling import read_ceiling as read_ceiling  # re-exported
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import HEADINGS, SLICE_NAMES
from newsrec.metrics import METRICS
from newsrec.report.tables import Cell, bold, print_tables, table

NAMES = {
    "popularity": "train popularity",
    "recent": "recent popularity",
    "age": "news age",
    "category": "category affinity",
    "tfidf": "TF-IDF cosine",
    "cosine": "centred PLM cosine",
}
"""Names of baselines in tables; the other baselines keep their own name."""

CEILING = "world's ceiling"
GROUPS_SHOWN = 8
"""Most groups of a slice on the terminal; the page has them all."""


def comparison_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a row of the four metrics for each scorer."""
    cells = [(NAMES.get(name, name), *_metric_cells(metrics)) for name, metrics in rows.items()]
    return table(("", *HEADINGS.values()), cells, title, framed=True)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Return a table with a row for each of the four metrics: value and interval."""
    rows = []
    for metric, heading in HEADINGS.items():
        low, high = metrics["intervals"][metric] if "intervals" in metrics else (np.nan, np.nan)
        rows.append((heading, f"{metrics[metric]:.4f}", f"{low:.4f} to {high:.4f}"))
    return table(("", "value", "95 % interval"), rows)


def beside_table(metrics: Mapping[str, Any], ceiling: Mapping[str, float] | None = None) -> Table:
    """Return a table of the scorer and the baselines, with the AUC difference to each baseline.

    ``ceiling`` is the last row, if it is known.
    """
    rows: list[Sequence[Cell]] = []
    for name, row in metrics["baselines"].items():
        low, high = row["auc_difference_interval"]
        above = f"{row['auc_difference']:+.4f}", f"{low:+.3f} to {high:+.3f}"
        rows.append((NAMES.get(name, name), *_metric_cells(row), *above))
    rows.append(bold(scored_name(metrics), *_metric_cells(metrics)))
    if ceiling:
        rows.append((CEILING, *_metric_cells(ceiling)))
    return table(("", *HEADINGS.values(), "AUC\ndifference", "95 % interval\nof that"), rows)


def slices_table(metrics: Mapping[str, Any]) -> Table:
    """Return a table of the AUC of each group of each slice that divides the split.

    A group with fewer users than ``FEWEST_USERS`` has no interval.
    """
    rows: list[Sequence[Cell]] = []
    for name, groups in metrics["slices"].items():
        if len(groups) < 2:
            continue
        label = SLICE_NAMES.get(name, name)
        for group, row in list(groups.items())[:GROUPS_SHOWN]:
            cells = "-", "-"
            if row["evaluated"]:
                low, high = row["intervals"]["auc"]
                sure = row["users"] >= FEWEST_USERS
                cells = f"{row['auc']:.4f}", f"{low:.4f} to {high:.4f}" if sure else "-"
            rows.append((label, group, f"{row['evaluated']:,}", *cells))
            label = ""
        if len(groups) > GROUPS_SHOWN:
            rows.append(("", f"and {len(groups) - GROUPS_SHOWN} more"))
    return table(("slice", "group", "impressions", "AUC", "95 % interval"), rows, align="llr")


def _metric_cells(metrics: Mapping[str, Any]) -> list[str]:
    return [f"{metrics[metric]:.4f}" for metric in METRICS]


def scored_name(metrics: Mapping[str, Any]) -> str:
    """Return the scorer's name in tables: the name of a baseline, or "this model"."""
    name = metrics.get("scorer", "checkpoint")
    return "this model" if name == "checkpoint" else NAMES.get(name, name)


def in_precision(metrics: Mapping[str, Any]) -> str:
    """Return the precision of the scores as the end of a title; empty for a baseline."""
    precision = metrics.get("precision")
    return f", in {precision}" if precision else ""


def print_comparison(
    metrics: Mapping[str, Any], ceiling: Mapping[str, float] | None = None
) -> None:
    """Print the metrics of a model, of the baselines and, in a simulated world, of the ceiling."""
    split, baselines = metrics["split"], metrics.get("baselines", {})
    title = f"{split}, {metrics['window']}: {metrics['evaluated']:,} impressions"
    title += in_precision(metrics)
    if split in (metrics["selected_on"] or "").split("+"):
        title += ", the split that chose the checkpoint"
    if not metrics["evaluated"]:
        none = "none has both a clicked and a skipped candidate"
        say(f"{title}; {none}, so there are no metrics.")
        return
    rows = baselines | {"this model": metrics}
    if ceiling:
        rows |= {CEILING: ceiling}
    terminal().print(comparison_table(title, rows))
    if baselines:
        name = max(baselines, key=lambda name: baselines[name]["auc"])
        low, high = baselines[name]["auc_difference_interval"]
        say(
            f"AUC of this model minus that of {NAMES.get(name, name)}: "
            f"{baselines[name]['auc_difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}\n"
            "(paired, clustered by user; covers the choice of users, not the training seed)."
        )


def read_curves(ckpt_path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the curves that a run logged, if the checkpoint is still in its run folder.

    They are steps and values of ``train/loss`` and ``val/auc``, where ``RUN/metrics.csv`` has them.
    """
    path = ckpt_path.parent.parent / "metrics.csv"
    if ckpt_path.parent.name != "checkpoints" or not path.is_file():
        return {}
    from newsrec.training.progress.curves import read_series  # imports Lightning

    curves = {}
    for name, points in read_series(path, ("train/loss", "val/auc")).items():
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            curves[name] = (points[:, 0], points[:, 1])
    return curves


def print_results(
    title: str,
    metrics: Mapping[str, Any],
    ceiling: Mapping[str, float] | None,
    output: Path,
    written: Sequence[str],
) -> None:
    """Print the results of a split, and then the names of the written files."""
    split = metrics["split"]
    say(f"{title} on {split}, {metrics['window']}{in_precision(metrics)}.")
    for note in notes(metrics):
        say(note)
    if "auc" in metrics:
        tables = [metrics_table(metrics)]
        if metrics.get("baselines"):
            tables.append(beside_table(metrics, ceiling))
        print_tables(*tables, slices_table(metrics))
        say(f"A group of fewer than {FEWEST_USERS} users has no interval.\n")
    say("\n".join(counts(metrics)))
    say(f"Written to {output}: {', '.join(written)}.")


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return what to know before reading a split's metrics, one sentence each."""
    split = metrics["split"]
    other = metrics.get("other_data", [])
    lines = []
    for name, window in metrics["trained_on"].items():
        lines.append(f"Trained on {name}, {window}.")
        if split in name.split("+") and split not in other:
            lines.append(
                f"The model was trained on {split}, so its metrics say nothing of new impressions."
            )
    if other:
        names = " and ".join(other)
        lines.append(f"The data of training was not this folder's {names}.")
    chosen_on = (metrics["selected_on"] or "").split("+")
    if split in chosen_on and split not in other and "auc" in metrics:
        which = "some of these checkpoints" if "ensemble" in metrics else "this checkpoint"
        lines.append(f"{split} chose {which}: expect lower metrics on another split.")
    clicks = [f"{name} ({window})" for name, window in metrics.get("clicks_of", {}).items()]
    if clicks:
        lines.append(f"The baseline counts the clicks of {' and '.join(clicks)}.")
    return lines


def counts(metrics: Mapping[str, Any]) -> list[str]:
    """Return the counts that go with the metrics, as lines of text."""
    number = metrics["unknown_candidates"]
    unknown = f"{number:,} {'candidate' if number == 1 else 'candidates'} not in news.tsv."
    if "evaluated" in metrics:
        lines = [
            f"{metrics['impressions']:,} impressions, {metrics['evaluated']:,} evaluated "
            f"({metrics['single_class']:,} without a clicked or a skipped candidate left out);",
            f"{metrics['tied']:,} with tied scores; {unknown}",
            "Intervals cover the choice of users, not the training seed."
            if metrics["evaluated"]
            else "No impression has both a clicked and a skipped candidate: there are no metrics.",
        ]
        if 0 < metrics["users"] < FEWEST_USERS:
            were = "user is" if metrics["users"] == 1 else "users are"
            lines.append(f"{metrics['users']} {were} too few for intervals that can be trusted.")
    else:
        lines = [
            f"{metrics['split']} has no labels: {metrics['impressions']:,} impressions ranked, "
            f"{unknown}"
        ]
    dropped = metrics["dropped_lines"]
    if dropped:
        were = "line of behaviors.tsv was" if dropped == 1 else "lines of behaviors.tsv were"
        lines.append(f"{dropped:,} {were} dropped and not ranked.")
    return lines
