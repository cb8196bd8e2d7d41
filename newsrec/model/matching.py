"""Turns user vectors and news vectors into scores; all of a model's scores come from here.

A user has one vector per interest, ``[..., interests, dim]``. The score is the dot product of user
and news vector; with several interests, the highest of the dot products.
``newsrec.serving.matching`` does the same without PyTorch.
"""

import torch
from torch import Tensor

from newsrec.data.batch import EvalBatch


def match_candidates(users: Tensor, candidates: Tensor) -> Tensor:
    """Score each user's own candidates; every user has the same number of them.

    Args:
        users: User vectors ``[batch, interests, dim]``.
        candidates: News vectors ``[batch, candidates, dim]``.

    Returns:
        Scores ``[batch, candidates]``.
    """
    return _highest(torch.einsum("bid,bcd->bic", users, candidates), 1)


def match_pairs(users: Tensor, news: Tensor) -> Tensor:
    """Score pairs of a user and a news item.

    Args:
        users: User vectors ``[pairs, interests, dim]``.
        news: News vectors ``[pairs, dim]``.

    Returns:
        Scores ``[pairs]``.
    """
    return _highest((users * news.unsqueeze(1)).sum(dim=2), 1)


def match_all(users: Tensor, news: Tensor) -> Tensor:
    """Score all news for all users.

    Args:
        users: User vectors ``[users, interests, dim]``.
        news: News vectors ``[news, dim]``.

    Returns:
        Scores ``[users, news]``.
    """
    return _highest((users.flatten(0, 1) @ news.T).unflatten(0, users.shape[:2]), 1)


def match_impressions(users: Tensor, news: Tensor, batch: EvalBatch) -> Tensor:
    """Score whole impressions, in float32.

    Args:
        users: User vectors, one per row of ``batch.history`` ``[users, interests, dim]``.
        news: News vectors, one per catalogue row ``[news, dim]``.
        batch: Impressions whose indices refer to catalogue rows.

    Returns:
        Scores, all impressions joined ``[candidates]``.
    """
    counts = batch.offsets.diff()
    user = batch.user.repeat_interleave(counts, output_size=len(batch.candidates))
    return match_pairs(users.float()[user], news[batch.candidates].float())


def _highest(scores: Tensor, interests: int) -> Tensor:
    """Return the highest score over the dimension ``interests``; a size of 1 is only squeezed."""
    return scores.squeeze(interests) if scores.shape[interests] == 1 else scores.amax(interests)
