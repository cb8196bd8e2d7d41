"""Build ``report.html``: the content of ``metrics.json`` as a single page to read or send."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import BASELINE_NAMES, HEADINGS, SLICE_NAMES
from newsrec.evaluation.results import ENTROPY
from newsrec.evaluation.slices import SLICES
from newsrec.metrics import METRICS
from newsrec.report.beyond import LONG, SHORT, beyond_names, beyond_notes, beyond_rows
from newsrec.report.error_analysis import (
    GROUP_HEADINGS,
    baseline_name,
    bin_rows,
    error_notes,
    group_rows,
)
from newsrec.report.examples import Example
from newsrec.report.notes import chosen_by, counts, notes, oracles_note
from newsrec.report.pictures import Dot, dots, line, render
from newsrec.report.terminal import CEILING, in_precision, scored_name
from newsrec.report.trade_off import trade_off_pictures, trade_off_rows

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Steps and values by name."""


def html_page(
    title: str,
    metrics: Mapping[str, Any],
    ceiling: Mapping[str, float] | None,
    examples: Sequence[Example],
    curves: Curves | None,
    oracles: Mapping[str, float] | None = None,
    losses: Sequence[Example] = (),
) -> str:
    """Return the page of a split's results; without labels it has only counts and examples.

    ``ceiling``, ``curves`` and ``oracles`` are left out if None. ``losses`` are further examples:
    impressions that the best baseline ranks better.
    """
    own = scored_name(metrics)
    heading = f"{own[:1].upper()}{own[1:]} on {metrics['split']}, {metrics['window']}"
    baselines = metrics.get("baselines", {})
    beside = {BASELINE_NAMES.get(name, name): row for name, row in baselines.items()}
    if baselines:
        beside |= {own: metrics} | ({CEILING: ceiling} if ceiling else {})
    rows = [
        Dot(name, row["auc"], row.get("intervals", {}).get("auc"), "strong" * (name == own))
        for name, row in beside.items()
    ]
    unseen = metrics.get("unseen", {})
    on_unseen = unseen.get("baselines", {}) | ({"": unseen} if "auc" in unseen else {})
    on_unseen = {BASELINE_NAMES.get(n, n) or own: row["auc"] for n, row in on_unseen.items()}
    about = "AUC of each, with 95 % intervals"
    under = [*notes(metrics), *([oracles_note(oracles)] if oracles and "auc" in metrics else [])]
    return render(
        "page.html.j2",
        **{"title": title, "heading": heading + in_precision(metrics), "metrics": metrics},
        **{"notes": under, "counts": counts(metrics), "facts": _facts(metrics, title)},
        **{"own": own, "beside": beside, "examples": examples},
        **{"unseen": unseen, "on_unseen": on_unseen},
        **{"beyond": beyond_rows(metrics), "SHORT": SHORT, "LONG": LONG},
        trade_off=trade_off_rows(metrics["trade_off"]) if "trade_off" in metrics else {},
        trade_offs=trade_off_pictures(metrics["trade_off"]) if "trade_off" in metrics else {},
        **_errors(metrics.get("errors"), losses),
        **{"beyond_names": beyond_names(metrics), "beyond_notes": beyond_notes(metrics)},
        beside_picture=dots(rows, about, metrics["auc"]) if rows else "",
        slice_pictures=_slice_pictures(metrics),
        curves={k: line(x, y, f"{k} by step", "step") for k, (x, y) in (curves or {}).items()},
        **{"METRICS": METRICS, "HEADINGS": HEADINGS, "FEWEST_USERS": FEWEST_USERS},
        **{"SLICES": SLICES, "SLICE_NAMES": SLICE_NAMES},
    )


def _errors(errors: Mapping[str, Any] | None, losses: Sequence[Example]) -> dict[str, Any]:
    """Return what the page says of errors."""
    found = errors or {"reliability": None, "drift": None}
    return {
        "error_notes": error_notes(found),
        "weak_groups": group_rows(found),
        "GROUP_HEADINGS": GROUP_HEADINGS,
        "bins": bin_rows(found),
        "losses": losses,
        "against": baseline_name(found),
    }


def _slice_pictures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the picture of each slice; empty if no impression of the slice was evaluated."""
    pictures = {}
    for name, groups in metrics.get("slices", {}).items():
        rows = []
        for group, row in groups.items():
            if row["evaluated"]:
                sure = row["users"] >= FEWEST_USERS
                shown = (row["intervals"]["auc"], "") if sure else (None, "faint")
                rows.append(Dot(group, row["auc"], *shown))
        about = f"AUC by {SLICE_NAMES.get(name, name)}"
        pictures[name] = dots(rows, about, metrics["auc"]) if rows else ""
    return pictures


def _facts(metrics: Mapping[str, Any], title: str) -> dict[str, str]:
    trained = [f"{name}, {window}" for name, window in metrics["trained_on"].items()]
    found = metrics.get("checkpoint_sha256", "-")
    hashes = found if isinstance(found, list) else [found]
    by_auto = ", chosen by auto" if metrics.get("precision_by_auto") else ""
    facts = {
        "scored": title,
        "split": f"{metrics['split']}, {metrics['window']}",
        "trained on": "; ".join(trained) or "nothing",
        "selected on": (metrics["selected_on"] or "nothing") + chosen_by(metrics),
        "precision": f"{metrics['precision']}{by_auto}" if metrics["precision"] else "-",
        "checkpoint": f"SHA-256 {', '.join(hashes)}",
        "data": f"fingerprint {metrics['data_fingerprint']}",
    }
    if "fitted" in metrics:
        weights = [f"{row['weight']:.3f} {row['name']}" for row in metrics["fitted"]["members"]]
        facts["weights"] = "; ".join(weights)
    for key, name in (
        ("impressions", "impressions"),
        ("evaluated", "evaluated"),
        ("single_class", "without a clicked or a skipped candidate"),
        ("tied", "with tied scores"),
        ("unknown_candidates", "candidates not among the news"),
        ("sampled_candidates", "skipped news that were drawn, not shown"),
        ("beyond_accuracy", "beyond-accuracy lists, which no metric counts"),
        ("dropped_lines", "lines dropped"),
    ):
        if key in metrics:
            facts[name] = f"{metrics[key]:,}"
    facts["category entropy of the top 10"] = f"{metrics[ENTROPY]:.4f} bits"
    if metrics["selected_on"] is None and "checkpoint_sha256" not in metrics:
        del facts["selected on"], facts["precision"], facts["checkpoint"]
    return facts
