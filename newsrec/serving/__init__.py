"""Serves a trained model without PyTorch."""

from newsrec.serving.batch import BatchScorer
from newsrec.serving.recommend import Recommender

__all__ = ["BatchScorer", "Recommender"]
