"""Words that tables and pages share: names of metrics, slices and baselines, a note. No PyTorch."""

from newsrec.metrics import TABLE

HEADINGS = {name: metric.heading for name, metric in TABLE.items()}
"""Heading of each metric."""

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


def sampled_note(split: str, number: int) -> str:
    """Return what to know about a split whose skipped news were drawn instead of shown."""
    return (
        f"The {number:,} skipped news of {split} were drawn from what others clicked shortly "
        "before; nobody was shown them. Compare its metrics only with those on the same draws."
    )
