"""Print metrics on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from newsrec.console import counted, say, terminal
from newsrec.evaluation.ceiling import read_ceiling as read_ceiling  # re-exported
from newsrec.evaluation.ceiling import read_oracles as read_oracles
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import BASELINE_NAMES, HEADINGS, SLICE_NAMES, data_notes
from newsrec.metrics import METRICS
from newsrec.report.beyond import beyond_notes, beyond_table
from newsrec.report.error_analysis import error_notes, weakest_table
from newsrec.report.notes import chosen_by, counts, notes, on_unseen, oracles_note
from newsrec.report.tables import Cell, bold, print_tables, table
from newsrec.report.trade_off import trade_off_note, trade_off_tables

PAGE_FILE = "report.html"
CEILING = "world's ceiling"
GROUPS_SHOWN = 8
"""Most groups of a slice on the terminal; the page has them all."""


def comparison_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a row of the four metrics for each scorer."""
    cells = [
        (BASELINE_NAMES.get(name, name), *_metric_cells(metrics)) for name, metrics in rows.items()
    ]
    return table(("", *HEADINGS.values()), cells, title, framed=True)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Return a table with a row for each of the four metrics: value and interval.

    The metrics on the news that train has not seen stand beside those of all candidates.
    """
    unseen = metrics.get("unseen", {})
    both = [metrics, unseen] if "auc" in unseen else [metrics]
    rows = []
    for metric, heading in HEADINGS.items():
        cells = [heading]
        for part in both:
            low, high = part["intervals"][metric] if "intervals" in part else (np.nan, np.nan)
            cells += [f"{part[metric]:.4f}", f"{low:.4f} to {high:.4f}"]
        rows.append(cells)
    headings = ("", "value", "95 % interval", "unseen\nnews", "95 % interval")
    return table(headings[: 1 + 2 * len(both)], rows)


def beside_table(metrics: Mapping[str, Any], ceiling: Mapping[str, float] | None = None) -> Table:
    """Return a table of the scorer and the baselines, with the AUC difference from each baseline.

    ``ceiling`` is the last row, if it is known.
    """
    rows: list[Sequence[Cell]] = []
    for name, row in metrics["baselines"].items():
        low, high = row["auc_difference_interval"]
        above = f"{row['auc_difference']:+.4f}", f"{low:+.3f} to {high:+.3f}"
        rows.append((BASELINE_NAMES.get(name, name), *_metric_cells(row), *above))
    rows.append(bold(scored_name(metrics), *_metric_cells(metrics)))
    if ceiling:
        rows.append((CEILING, *_metric_cells(ceiling)))
    return table(("", *HEADINGS.values(), "AUC\ndifference", "95 % interval\nof that"), rows)


def weights_table(fitted: Mapping[str, Any]) -> Table:
    """Return a table of the weight of each model of a fitted ensemble.

    Args:
        fitted: The field of that name in ``metrics.json``.
    """
    rows = []
    for row in fitted["members"]:
        over = sorted(row["fold_weights"])
        folds = f"{over[0]:.3f} to {over[-1]:.3f}" if over else "-"
        rows.append((row["name"], f"{row['weight']:.3f}", folds, f"{row['auc']:.4f}"))
    return table(("model", "weight", "over folds", f"AUC alone,\n{fitted['learned_on']}"), rows)


def half_life_table(found: Mapping[str, Any]) -> Table:
    """Return a table of the AUC with each half-life that was measured.

    Args:
        found: The field ``half_life`` in ``metrics.json``.
    """
    rows: list[Sequence[Cell]] = []
    for row in found["measured"]:
        low, high = row["auc_difference_interval"]
        above = f"{row['auc_difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"
        cells = f"{row['hours']:g} h", f"{row['auc']:.4f}", *above
        rows.append(bold(*cells) if row["hours"] == found["hours"] else cells)
    return table(("half-life", "AUC", "minus\nnone", "95 % interval\nof that"), rows)


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
    return "this model" if name == "checkpoint" else BASELINE_NAMES.get(name, name)


def in_precision(metrics: Mapping[str, Any]) -> str:
    """Return the precision of the scores as the end of a title; empty for a baseline."""
    precision = metrics.get("precision")
    return f", in {precision}" if precision else ""


def print_comparison(
    metrics: Mapping[str, Any], ceiling: Mapping[str, float] | None = None
) -> None:
    """Print the metrics of a model, of the baselines and, in a simulated world, of the ceiling."""
    split, baselines = metrics["split"], metrics.get("baselines", {})
    title = f"{split}, {metrics['window']}: {counted(metrics['evaluated'], 'impression')}"
    title += in_precision(metrics)
    if split in (metrics["selected_on"] or "").split("+"):
        title += f", the split that chose the checkpoint{chosen_by(metrics)}"
    if not metrics["evaluated"]:
        none = "none has both a clicked and a skipped candidate"
        say(f"{title}; {none}, so there are no metrics.")
        return
    rows = baselines | {"this model": metrics}
    if ceiling:
        rows |= {CEILING: ceiling}
    terminal().print(comparison_table(title, rows))
    for line in on_unseen(metrics):
        say(line)
    for line in data_notes(split, metrics):
        say(line)
    if baselines:
        name = max(baselines, key=lambda name: baselines[name]["auc"])
        low, high = baselines[name]["auc_difference_interval"]
        say(
            f"AUC of this model minus that of {BASELINE_NAMES.get(name, name)}: "
            f"{baselines[name]['auc_difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}\n"
            "(paired, clustered by user; covers the choice of users, not the training seed)."
        )


def read_curves(ckpt_path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the curves that a run logged, if the checkpoint is still in its run folder.

    They are steps and values of the loss and the validation metrics that ``RUN/metrics.csv`` has.
    """
    path = ckpt_path.parent.parent / "metrics.csv"
    if ckpt_path.parent.name != "checkpoints" or not path.is_file():
        return {}
    from newsrec.training.progress.curves import NAMES, read_series  # imports Lightning

    curves = {}
    for name, points in read_series(path, NAMES).items():
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            curves[name] = (points[:, 0], points[:, 1])
    return curves


def read_config(ckpt_path: Path) -> str | None:
    """Return the text of ``RUN/config.yaml``, if the checkpoint is still in its run folder."""
    path = ckpt_path.parent.parent / "config.yaml"
    if ckpt_path.parent.name != "checkpoints" or not path.is_file():
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def page_link(page: Path) -> str:
    """Return a line with the address of a page, which terminals open on a click."""
    return f"Open the page: {page.absolute().as_uri()}"


def _print_errors(errors: Mapping[str, Any], name: str) -> None:
    """Print where a model errs."""
    weakest = weakest_table(errors, name)
    if weakest is not None:
        print_tables(weakest)
    for line in error_notes(errors):
        say(line)
    say("")


def print_results(
    title: str,
    metrics: Mapping[str, Any],
    ceiling: Mapping[str, float] | None,
    oracles: Mapping[str, float],
    output: Path,
    written: Sequence[str],
) -> None:
    """Print the results of a split, and then the names of the written files."""
    split = metrics["split"]
    say(f"{title} on {split}, {metrics['window']}{in_precision(metrics)}.")
    for note in notes(metrics):
        say(note)
    if "fitted" in metrics:
        print_tables(weights_table(metrics["fitted"]))
    if metrics.get("half_life", {}).get("measured"):
        print_tables(half_life_table(metrics["half_life"]))
    if "auc" in metrics:
        tables = [metrics_table(metrics)]
        if metrics.get("baselines"):
            tables.append(beside_table(metrics, ceiling))
        slices = slices_table(metrics)
        print_tables(*tables, *([slices] if slices.row_count else []))
        if slices.row_count:
            say(f"A group of fewer than {FEWEST_USERS} users has no interval.\n")
        if "errors" in metrics:
            _print_errors(metrics["errors"], scored_name(metrics))
        if oracles:
            say(f"{oracles_note(oracles)}\n")
    if "beyond" in metrics:
        print_tables(beyond_table(metrics))
        say("\n".join(beyond_notes(metrics)) + "\n")
    if "trade_off" in metrics:
        print_tables(*trade_off_tables(metrics["trade_off"]))
        say(f"{trade_off_note(metrics)}\n")
    say("\n".join(counts(metrics)))
    if PAGE_FILE in written:
        say(page_link(output / PAGE_FILE))
    say(f"Written to {output}: {', '.join(written)}.")
