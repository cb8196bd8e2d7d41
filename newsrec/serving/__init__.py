"""Serves a trained model without PyTorch."""

from newsrec.serving.recommend import Recommender

__all__ = ["Recommender"]
