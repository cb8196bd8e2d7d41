"""Losses for ``model.loss``; each is a function of a batch and its encoded vectors.

A loss gets all news and user vectors of the batch, so it may score other candidates than a user's
own. To add a loss, write a function and add a line to ``LOSSES``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from newsrec.data.batch import Batch
from newsrec.model.matching import match_all, match_candidates
from newsrec.model.recommender import Encoded
from newsrec.training.processes.gather import gather


def cross_entropy(encoded: Encoded, batch: Batch) -> Tensor:
    """Return the cross-entropy of picking the clicked candidate of each sample."""
    return F.cross_entropy(_own_scores(encoded, batch), batch.labels.argmax(dim=1))


def in_batch(encoded: Encoded, batch: Batch) -> Tensor:
    """Return the cross-entropy of picking the click among own candidates and others' clicks.

    The further negatives of a sample are the distinct news that other samples click, on all
    processes, without ``SharedClicks.excluded``. With scores ``s``, own candidates ``C`` and
    further negatives ``N`` the loss of a sample is

        -log( exp(s[click]) / (sum over C of exp(s) + sum over N of exp(s - log q)) )

    where ``q = 1 - (1 - p)^n`` is the probability that any of the ``n`` samples of other users
    clicks the news item, and ``p`` its share of the training samples. Popular news is a negative
    more often, and the division by ``q`` takes this back (logQ correction: Bengio and Senecal, IEEE
    Transactions on Neural Networks 2008; for in-batch negatives Yi et al., RecSys 2019): its
    expectation is the sum of ``exp(s)`` over all clicked news of the training set that are not
    excluded, each once. The formula of ``q`` holds for negatives without repeats, as in
    TensorFlow's candidate samplers. Own candidates are there with probability 1 and therefore not
    corrected (Khrylchenko et al., arXiv 2507.09331).

    Under gradient accumulation, each of the accumulated batches has its own negatives.
    """
    shared = batch.shared
    assert shared is not None, "the data module must have the same loss"
    clicked = batch.labels.argmax(dim=1)
    own = encoded.news[batch.candidates.gather(1, clicked[:, None]).squeeze(1)]
    padding = len(shared.news) - len(own)
    vectors = gather(F.pad(own.float(), (0, 0, 0, padding))).to(own.dtype)
    news, share, user = (gather(x) for x in (shared.news, shared.share, shared.user))
    scores = match_all(encoded.users, vectors)[batch.user].float()  # [batch, shared clicks]
    others = (news > 0) & (user != shared.user[: len(own), None])
    others = others.sum(dim=1, keepdim=True)
    log_q = torch.log(-torch.expm1(others * torch.log1p(-share)))
    no_negative = _in_rows(news, shared.excluded) | (_repeats(news) | (news == 0))
    scores = (scores - log_q).masked_fill(no_negative, -torch.inf)
    return F.cross_entropy(torch.cat([_own_scores(encoded, batch), scores], dim=1), clicked)


def impression(encoded: Encoded, batch: Batch) -> Tensor:
    """Return the cross-entropy between an impression's clicks and the softmax over its candidates.

    The loss of an impression is the mean of ``-log softmax(scores)`` over its clicks, and the loss
    of a batch the mean over its impressions: ListNet's top-one loss (Cao et al., ICML 2007) with
    equal shares for the clicks. For binary labels it bounds MRR and nDCG (Bruch et al., ICTIR
    2019). With the logarithm of the clicks' summed probability instead, the gradient would fall
    mostly on the click that scores highest already, while MIND's metrics count every click. Khosla
    et al. (NeurIPS 2020) found the same choice better in contrastive learning.
    """
    log_p = _own_scores(encoded, batch).log_softmax(dim=1)
    clicked = batch.labels > 0
    return -(log_p.where(clicked, 0).sum(dim=1) / clicked.sum(dim=1)).mean()


def _own_scores(encoded: Encoded, batch: Batch) -> Tensor:
    """Return the scores of each sample's candidates in float32, -inf for padding."""
    users, candidates = encoded.users[batch.user], encoded.news[batch.candidates]
    scores = match_candidates(users, candidates).float()
    return scores.masked_fill(batch.candidates == 0, -torch.inf)


def _in_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Tell which of ``values`` each row, which is sorted, contains ``[rows, values]``."""
    values = values.expand(len(rows), -1).contiguous()
    places = torch.searchsorted(rows, values).clamp(max=rows.shape[1] - 1)
    return rows.gather(1, places) == values


def _repeats(values: Tensor) -> Tensor:
    """Tell which values are equal to an earlier one; ``unique`` would wait for the device."""
    ordered, places = values.sort(stable=True)
    repeated = F.pad(ordered[1:] == ordered[:-1], (1, 0))
    return torch.empty_like(repeated).scatter(0, places, repeated)


LOSSES: dict[str, Callable[[Encoded, Batch], Tensor]] = {
    "cross_entropy": cross_entropy,
    "in_batch": in_batch,
    "impression": impression,
}
