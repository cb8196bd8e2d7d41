"""Numbers as a person reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from newsrec.data.mind import MindData
from newsrec.evaluation.baselines import BASELINES, score_baseline
from newsrec.evaluation.intervals import paired_interval
from newsrec.metrics import METRICS, impression_metrics, summarize

NAMES = {
    "recent": "recent popularity",
    "tfidf": "TF-IDF cosine",
    "cosine": "centred PLM cosine",
}
"""How a table calls a baseline; the others by their own name."""

HEADINGS = ("AUC", "MRR", "nDCG@5", "nDCG@10")


def comparison_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a row of the four metrics for each scorer.

    Args:
        title: What was scored, the split's name included.
        rows: Metrics by the scorer's name.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for name, metrics in rows.items():
        label = NAMES.get(name, name)
        table.add_row(label, *(f"{metrics[metric]:.4f}" for metric in METRICS))
    return table


def metrics_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Return a table with a row for each of the four metrics, its interval beside it.

    Args:
        title: What was scored, the split's name included.
        metrics: What ``metrics.json`` holds.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for heading, metric in zip(HEADINGS, METRICS, strict=True):
        low, high = metrics["intervals"][metric] if "intervals" in metrics else (np.nan, np.nan)
        table.add_row(heading, f"{metrics[metric]:.4f}", f"{low:.4f} to {high:.4f}")
    return table


def print_comparison(
    data: MindData,
    split: str,
    scores: NDArray[np.float32],
    news_vectors: NDArray[np.float32] | None,
    selected_on: str,
) -> None:
    """Print a model's metrics beside the baselines' and, in a simulated world, the ceiling.

    Args:
        data: The data folder.
        split: A labelled split.
        scores: The model's ``[candidates]``.
        news_vectors: The PLM's mean states, for the baseline ``cosine`` ``[news, hidden]``; None
            leaves all baselines out.
        selected_on: Split that chose the checkpoint.
    """
    part = data.split(split)
    assert part.labels is not None
    offsets = part.candidates.offsets
    own = impression_metrics(scores, part.labels, offsets)
    rows, results = {}, {}
    for name in BASELINES if news_vectors is not None else ():
        baseline = score_baseline(name, data, split, news_vectors=news_vectors)
        results[name] = impression_metrics(baseline, part.labels, offsets)
        rows[name] = summarize(results[name])
    rows["this model"] = summarize(own)
    ceiling = read_ceiling(data.root, split)
    if ceiling:
        rows["ceiling of this simulated world"] = ceiling
    chosen = ", the split that chose the checkpoint" if split == selected_on else ""
    evaluated = rows["this model"]["evaluated"]
    title = f"{split}, {part.window}: {evaluated:,} impressions{chosen}"
    Console().print(comparison_table(title, rows))
    if results:
        best = max(results, key=lambda name: rows[name]["auc"])
        mean, low, high = paired_interval(own.values[0], results[best].values[0], part.user)
        print(
            f"AUC of this model minus that of {NAMES.get(best, best)}: {mean:+.4f}, 95 % interval "
            f"{low:+.4f} to {high:+.4f}\n(paired, clustered by user; covers the choice of users, "
            "not the training seed)."
        )


def read_ceiling(root: Path, split: str) -> dict[str, float] | None:
    """Return what the true click probabilities of a simulated world reach, if it is one."""
    path = root / "world.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text()).get("ceiling", {}).get(split)
