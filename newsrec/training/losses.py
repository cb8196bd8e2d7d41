"""Losses for ``model.loss``; each is a function of a batch and its encoded vectors.

A loss gets all news and user vectors of the batch, so it may score other candidates than a user's
own. To add a loss, write a function and add a line to ``LOSSES``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from newsrec.data.batch import Batch
from newsrec.model.matching import match_candidates
from newsrec.model.recommender import Encoded


def cross_entropy(encoded: Encoded, batch: Batch) -> Tensor:
    """Return the cross-entropy of picking the clicked candidate of each sample."""
    users, candidates = encoded.users[batch.user], encoded.news[batch.candidates]
    scores = match_candidates(users, candidates).float()
    scores = scores.masked_fill(batch.candidates == 0, -torch.inf)
    return F.cross_entropy(scores, batch.labels.argmax(dim=1))


LOSSES: dict[str, Callable[[Encoded, Batch], Tensor]] = {"cross_entropy": cross_entropy}
