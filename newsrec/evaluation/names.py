"""How tables and pages call metrics and slices; free of PyTorch."""

HEADINGS = {"auc": "AUC", "mrr": "MRR", "ndcg@5": "nDCG@5", "ndcg@10": "nDCG@10"}
"""Of the metrics, in the order of ``newsrec.metrics.METRICS``."""

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
