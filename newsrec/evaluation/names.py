"""Words that tables and pages share: names of metrics, slices and baselines, a note. No PyTorch."""

from collections.abc import Mapping
from typing import Any

from newsrec.metrics import TABLE

HEADINGS = {name: metric.heading for name, metric in TABLE.items()}
"""Heading of each metric."""

MEANINGS = {
    "auc": "share of pairs of a clicked and a skipped candidate in which the clicked one is ranked "
    "higher; 0.5 is chance",
    "mrr": "mean of 1 / rank over the clicked candidates",
    "ndcg@5": "gain of the clicks among the first 5, smaller on lower ranks, as a share of the "
    "largest possible gain",
    "ndcg@10": "the same for the first 10",
}
"""What each metric is, in a line."""

SLICE_NAMES = {
    "history_length": "clicks before",
    "user": "user",
    "shown_new": "new candidates",
    "clicked_new": "clicked news",
    "history_new": "new in the history",
    "news_age": "age of the click",
    "category": "category clicked",
    "candidates": "candidates",
    "day": "day",
}
"""Name of each slice."""

BASELINE_NAMES = {
    "popularity": "train popularity",
    "recent": "recent popularity",
    "age": "news age",
    "category": "category affinity",
    "tfidf": "TF-IDF cosine",
    "cosine": "centred PLM cosine",
}
"""Names of baselines in tables; the other baselines keep their own name."""


COUNTS = {
    "sampled_candidates": "The {:,} skipped news of {} were drawn from what others clicked shortly "
    "before; nobody was shown them. Compare its metrics only with those on the same draws.",
    "beyond_accuracy": "Beyond-accuracy lists of {1} (impression id 0), which are ranked and are "
    "in the submission, but count in no metric: {0:,}.",
    "clicks_not_shown": "Clicks of {1} on news that their impression did not show, left out: "
    "{0:,}.",
    "users_without_history": "Impressions of {1} with a user whom the file of histories lacks, so "
    "their histories are empty: {0:,}.",
}
"""Sentences about counts that only some data have, with places for the number and the split."""


def data_notes(split: str, counts: Mapping[str, Any]) -> list[str]:
    """Return what to know about a split, from its counts or its ``metrics.json``."""
    return [text.format(counts[name], split) for name, text in COUNTS.items() if name in counts]
