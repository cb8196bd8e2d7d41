"""Turns user vectors and news vectors into scores; all of a model's scores come from here.

A user is one or several vectors. The products of a news vector with each of them are combined into
one score, in the way that the model's head says (``newsrec.model.heads``):

- ``dot``: a user has one vector, and its product is the score.
- ``late``: a user has a user vector and a vector per click. The score is the product with the user
  vector plus the mean of the largest products with clicks.
- ``interests``: a user has one vector per interest. The score is a smooth or plain maximum.

``newsrec.serving.matching`` does the same without PyTorch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from newsrec.data.batch import EvalBatch

NUMBERS_AT_ONCE = 2**22
"""Most numbers of a block of products, or of the vectors that they are made from, 16 MiB each; at
least those of one user or impression."""
PAIRS_AT_ONCE = 2**25
"""Most numbers of a block of users' vectors on a GPU, 128 MiB; at least those of one pair."""


@dataclass(frozen=True)
class Users:
    """All vectors from which users are scored, and how their products become one score.

    ``users[rows]`` selects users, as a tensor of user vectors would.
    """

    vectors: Tensor
    """Vectors of each user ``[users, vectors, dim]``."""
    mask: Tensor | None = None
    """With ``late``, True where a click is real; vector 0 is the user's own and has no entry here
    ``[users, vectors - 1]``."""
    combine: Callable[[Tensor, Tensor | None], Tensor] | None = None
    """Turns products ``[users, vectors, ...]`` and ``mask`` into scores ``[users, ...]``; None
    takes the highest product."""

    @classmethod
    def of(cls, users: "Tensor | Users") -> "Users":
        """Return users unchanged, or make them from a tensor ``[users, interests, dim]``."""
        return users if isinstance(users, cls) else cls(users)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Tensor | slice) -> "Users":
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, vectors=self.vectors[rows], mask=mask)

    def scores(self, products: Tensor) -> Tensor:
        """Turn products with each vector ``[users, vectors, ...]`` into scores ``[users, ...]``."""
        return highest(products) if self.combine is None else self.combine(products, self.mask)


def match_candidates(users: Tensor | Users, candidates: Tensor) -> Tensor:
    """Score each user's own candidates; every user has the same number of them.

    Args:
        users: Users, or user vectors ``[batch, interests, dim]``.
        candidates: News vectors ``[batch, candidates, dim]``.

    Returns:
        Scores ``[batch, candidates]``.
    """
    users = Users.of(users)
    return users.scores(torch.einsum("bid,bcd->bic", *_of_one_type(users.vectors, candidates)))


def match_pairs(users: Tensor | Users, news: Tensor) -> Tensor:
    """Score pairs of a user and a news item.

    Args:
        users: Users, or user vectors ``[pairs, interests, dim]``.
        news: News vectors ``[pairs, dim]``.

    Returns:
        Scores ``[pairs]``.
    """
    users = Users.of(users)
    return users.scores((users.vectors * news.unsqueeze(1)).sum(dim=2))


def match_all(users: Tensor | Users, news: Tensor) -> Tensor:
    """Score all news for all users.

    Args:
        users: Users, or user vectors ``[users, interests, dim]``.
        news: News vectors ``[news, dim]``.

    Returns:
        Scores ``[users, news]``.
    """
    users = Users.of(users)
    number, vectors = users.vectors.shape[:2]
    # With several vectors per user, products are combined block by block, so that not all of them
    # are alive at once. The backward pass of ``late`` needs only the places of the largest.
    at_once = max(1, NUMBERS_AT_ONCE // max(vectors * len(news), 1))
    if vectors == 1 or at_once >= number:
        return users.scores(_products(users.vectors, news))
    blocks = [users[start : start + at_once] for start in range(0, number, at_once)]
    return torch.cat([block.scores(_products(block.vectors, news)) for block in blocks])


def match_impressions(users: Tensor | Users, news: Tensor, batch: EvalBatch) -> Tensor:
    """Score whole impressions, in float32.

    Args:
        users: Users, or user vectors, one per row of ``batch.history``
            ``[users, interests, dim]``.
        news: News vectors, one per catalogue row ``[news, dim]``.
        batch: Impressions whose indices refer to catalogue rows.

    Returns:
        Scores, all impressions joined ``[candidates]``.
    """
    users, counts = Users.of(users), batch.offsets.diff()
    users = replace(users, vectors=users.vectors.float())
    vectors, dim = users.vectors.shape[1:]
    if news.device.type == "cpu" and vectors > 1:
        return _match_in_blocks(users, news, batch)
    user = batch.user.repeat_interleave(counts, output_size=len(batch.candidates))
    pairs = max(len(user), 1)
    if vectors > 1:  # one block would hold all vectors of a user once per candidate
        pairs = max(1, PAIRS_AT_ONCE // (vectors * dim))
    blocks = zip(user.split(pairs), batch.candidates.split(pairs), strict=True)
    return torch.cat([match_pairs(users[rows], news[shown].float()) for rows, shown in blocks])


def _match_in_blocks(users: Users, news: Tensor, batch: EvalBatch) -> Tensor:
    """Score whole impressions in blocks of similar size, each padded to its longest.

    Copies a user's vectors once per impression, but a GPU would have to wait for the sizes.
    """
    counts = batch.offsets.diff()
    vectors, dim = users.vectors.shape[1:]
    scores = news.new_zeros(len(batch.candidates), dtype=torch.float32)
    sizes, order = counts.sort(descending=True)
    lengths, start = sizes.tolist(), 0
    while start < len(lengths) and (longest := lengths[start]):
        numbers = max(longest * vectors, (longest + vectors) * dim)
        members = order[start : start + max(1, NUMBERS_AT_ONCE // numbers)]
        slots = torch.arange(longest)
        real = slots < counts[members, None]  # [impressions, longest]
        places = (batch.offsets[members, None] + slots).clamp(max=len(scores) - 1)
        with torch.autocast("cpu", enabled=False):
            shown = news[batch.candidates[places]].float()
            found = match_candidates(users[batch.user[members]], shown)
        scores[places[real]] = found[real]
        start += len(members)
    return scores


def highest(products: Tensor) -> Tensor:
    """Return the highest of each user's products ``[users, ...]``; a single one is only squeezed.

    Args:
        products: Products with each of a user's vectors ``[users, vectors, ...]``.
    """
    return products.squeeze(1) if products.shape[1] == 1 else products.amax(dim=1)


def smooth_highest(products: Tensor, temperature: Tensor) -> Tensor:
    """Return ``t log mean exp(product / t)``, in float32 or better ``[users, ...]``.

    Args:
        products: Products with each of a user's vectors ``[users, vectors, ...]``.
        temperature: ``t``; the maximum becomes plain as it falls to 0, the mean as it grows.
    """
    products = products.to(torch.promote_types(products.dtype, torch.float32))
    sums = (products / temperature).logsumexp(dim=1)
    return temperature * (sums - math.log(products.shape[1]))


def with_clicks(products: Tensor, mask: Tensor, clicks: int) -> Tensor:
    """Add the mean of the largest products with clicks to the product with the user vector.

    Args:
        products: Product with the user vector, then with each click ``[users, 1 + history, ...]``.
        mask: True where a click is real ``[users, history]``.
        clicks: Most products to average; a user with fewer clicks has the mean of these.

    Returns:
        Scores in float32 or better; the first product for users without clicks ``[users, ...]``.
    """
    products = products.to(torch.promote_types(products.dtype, torch.float32))
    others = (1,) * (products.ndim - 2)
    each = products[:, 1:].masked_fill(~mask.view(*mask.shape, *others), -torch.inf)
    top = each.topk(min(clicks, each.shape[1]), dim=1).values
    counts = mask.sum(dim=1).clamp(max=clicks)
    real = torch.arange(top.shape[1], device=top.device) < counts[:, None]
    top = top.masked_fill(~real.view(*real.shape, *others), 0)
    return products[:, 0] + top.sum(dim=1) / counts.clamp(min=1).view(-1, *others)


def _products(vectors: Tensor, news: Tensor) -> Tensor:
    """Return products of all news with all users' vectors ``[users, vectors, news]``."""
    vectors, news = _of_one_type(vectors, news)
    return (vectors.flatten(0, 1) @ news.T).unflatten(0, vectors.shape[:2])


def _of_one_type(vectors: Tensor, news: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the wider type: vectors from sums over clicks may be float32, others bf16."""
    dtype = torch.promote_types(vectors.dtype, news.dtype)
    return vectors.to(dtype), news.to(dtype)
