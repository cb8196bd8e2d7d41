"""Names of metrics and slices in tables and pages; imports no PyTorch."""

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
