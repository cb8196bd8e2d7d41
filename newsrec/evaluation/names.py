"""How tables and pages call metrics and slices; free of PyTorch."""

from newsrec.metrics import TABLE

HEADINGS = {name: metric.heading for name, metric in TABLE.items()}
"""Of the metrics."""

SLICE_NAMES = {
    "history_length": "clicks before",
    "user": "reader",
    "shown_new": "new candidates",
    "clicked_new": "clicked story",
    "history_new": "new in the history",
    "story_age": "age of the click",
    "category": "category clicked",
    "candidates": "candidates",
    "day": "day",
}
"""Of the slices."""
