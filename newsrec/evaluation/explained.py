"""Explains a trained model's scores, as ``newsrec.serving.explain`` does without PyTorch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsrec.attribution import Attributions, attribute, runs

if TYPE_CHECKING:
    from newsrec.training.module import RecommenderModule

Explain = Callable[[NDArray[np.integer], NDArray[np.integer]], Attributions]
"""Divides the scores of candidates among the clicks of a history, both as catalogue rows."""


def explainer(module: "RecommenderModule", max_history: int) -> Explain:
    """Return what explains the scores of a model that has just scored a split.

    Args:
        module: The model, with the vectors of the split's news.
        max_history: Number of newest clicks that the model reads.
    """
    import torch

    from newsrec.model.matching import Users, match_all

    recommender: Any = module.recommender
    assert module.news_vectors is not None
    news = module.news_vectors.float()

    @torch.inference_mode()
    def explain(history: NDArray[np.integer], candidates: NDArray[np.integer]) -> Attributions:
        recommender.eval()
        device = next(recommender.parameters()).device
        rows = np.asarray(history[-max_history:], dtype=np.int64)
        what = runs(len(rows))
        kept = torch.from_numpy(what.kept).to(device)
        clicked = news[torch.from_numpy(rows)].to(device) * kept[..., None]
        mask = torch.ones_like(kept)
        if not len(rows):  # a length of 1, as an empty history has in a batch
            clicked, mask = clicked.new_zeros(1, 1, news.shape[1]), mask.new_zeros(1, 1)
        vectors = news[torch.from_numpy(np.asarray(candidates, dtype=np.int64))].to(device)
        users = recommender.users_of(clicked, mask)
        if users.mask is None:
            return attribute(what, match_all(users, vectors).cpu().numpy())
        scores = match_all(Users(users.vectors[:, :1]), vectors).cpu().numpy()
        products = users.vectors[-1, 1 : 1 + len(rows)] @ vectors.T
        return attribute(what, scores, products.cpu().numpy(), recommender.head.clicks)

    return explain
