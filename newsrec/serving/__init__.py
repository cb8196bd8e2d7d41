"""A trained model in a process of its own."""

from newsrec.serving.recommend import Recommender

__all__ = ["Recommender"]
