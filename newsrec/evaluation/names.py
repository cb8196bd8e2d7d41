"""Names of metrics, slices and baselines in tables and pages; imports no PyTorch."""

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
