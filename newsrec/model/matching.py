"""Turns user vectors and news vectors into scores; all of a model's scores come from here.

A user is one or several vectors. The products of a news vector with each of them are combined into
one score, in the way that the model's matching says (``model.matching``):

- ``dot``: a user has one vector, and its product is the score.
- ``late``: a user has a user vector and a vector per click. The score is the product with the user
  vector plus the mean of the largest products with clicks.
- ``interests``: a user has one vector per interest. The score is a smooth or plain maximum.

``newsrec.serving.matching`` does the same without PyTorch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from newsrec.data.batch import EvalBatch

Matching = Literal["dot", "late", "interests"]
Combine = Literal["logsumexp", "max"]

NUMBERS_AT_ONCE = 2**22
"""Most numbers of a block of products, or of the vectors that they are made from, 16 MiB each; at
least those of one user or impression."""


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
    return users.scores(torch.einsum("bid,bcd->bic", users.vectors, candidates))


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
    vectors, dim = users.vectors.shape[1:]
    if vectors == 1:
        user = batch.user.repeat_interleave(counts, output_size=len(batch.candidates))
        return match_pairs(users.vectors.float()[user], news[batch.candidates].float())
    scores = news.new_zeros(len(batch.candidates), dtype=torch.float32)
    sizes, order = counts.sort(descending=True)  # equal sizes together need little padding
    lengths, start = sizes.tolist(), 0
    while start < len(lengths) and (longest := lengths[start]):
        numbers = max(longest * vectors, (longest + vectors) * dim)
        members = order[start : start + max(1, NUMBERS_AT_ONCE // numbers)]
        slots = torch.arange(longest, device=news.device)
        real = slots < counts[members, None]  # [impressions, longest]
        places = (batch.offsets[members, None] + slots).clamp(max=len(scores) - 1)
        with torch.autocast(news.device.type, enabled=False):
            part = users[batch.user[members]]
            part = replace(part, vectors=part.vectors.float())
            found = match_candidates(part, news[batch.candidates[places]].float())
        scores[places[real]] = found[real]
        start += len(members)
    return scores


def highest(products: Tensor) -> Tensor:
    """Return the highest of each user's products ``[users, ...]``; a single one is only squeezed.

    Args:
        products: Products with each of a user's vectors ``[users, vectors, ...]``.
    """
    return products.squeeze(1) if products.shape[1] == 1 else products.amax(dim=1)


def _products(vectors: Tensor, news: Tensor) -> Tensor:
    """Return products of all news with all users' vectors ``[users, vectors, news]``."""
    return (vectors.flatten(0, 1) @ news.T).unflatten(0, vectors.shape[:2])


class DotMatching(nn.Module):
    """Scores by the product with the user vector."""

    outputs: tuple[str, ...] = ("user_vector",)
    """Names of what ``exported`` returns, which are the exported graph's outputs."""

    def forward(self, vectors: Tensor, history: Tensor, mask: Tensor, scale: Tensor) -> Users:
        """Make users from the user encoder's vectors.

        Args:
            vectors: User vectors ``[users, interests, dim]``.
            history: Vectors of clicked news ``[users, history, dim]``.
            mask: True where a click is real ``[users, history]``.
            scale: Factor from a product of two news vectors to a score.
        """
        return Users(vectors)

    def combine(self, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Turn products ``[users, vectors, ...]`` into scores; the same as ``Users.combine``."""
        return highest(products)

    def exported(self, users: Users) -> tuple[Tensor, ...]:
        """Return what a process without PyTorch needs to score users, in the order of ``outputs``.

        The first is always one vector per user ``[users, dim]``.
        """
        return (users.vectors.squeeze(1),)

    def numbers(self) -> dict[str, Tensor]:
        """Return learned numbers, by name."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return what else a process without PyTorch needs to know, for the manifest."""
        return {"head": "dot"}


class LateMatching(DotMatching):
    """Scores by a mix of the product with the user vector and those with the most similar clicks.

    The score of a candidate is ``(1 - m) user vector . candidate + m scale mean of the largest
    products of click vectors and candidate``, with a learned mix ``m`` that starts at 1/2. A click
    vector is the news vector through a learned linear map, which starts as the identity. Both terms
    have the same scale: an untrained model with a residual path, and no more clicks in a history
    than are averaged, scores as with ``dot``.

    A user with fewer clicks than ``clicks`` has the mean of those; a user without clicks is scored
    by the user vector alone. A news item that was clicked twice counts as two clicks.

    Args:
        dim: Size of news and user vectors.
        clicks: Number of largest products to average.
    """

    outputs = ("user_vector", "click_vectors", "click_mask")

    def __init__(self, dim: int, clicks: int) -> None:
        super().__init__()
        self.clicks = clicks
        self.mix = nn.Parameter(torch.zeros(()))
        """Logit of the share of clicks in a score."""
        self.change = nn.Linear(dim, dim, bias=False)
        """What the map adds to a news vector, so that weight decay pulls towards the identity."""
        nn.init.zeros_(self.change.weight)

    def forward(self, vectors: Tensor, history: Tensor, mask: Tensor, scale: Tensor) -> Users:
        """Make users; arguments as in ``DotMatching``. Mix and scale become part of the vectors."""
        share = self.mix.sigmoid()
        clicked = mask.any(dim=1)[:, None, None]
        own = torch.where(clicked, (1 - share) * vectors, vectors)
        clicks = share * scale * (history + self.change(history))
        clicks = clicks.masked_fill(~mask[..., None], 0)
        return Users(torch.cat([own, clicks.to(own.dtype)], dim=1), mask, self.combine)

    def combine(self, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Add the mean of the largest products with clicks to the product with the user vector."""
        assert mask is not None
        products = products.to(torch.promote_types(products.dtype, torch.float32))
        others = (1,) * (products.ndim - 2)
        clicks = products[:, 1:].masked_fill(~mask.view(*mask.shape, *others), -torch.inf)
        top = clicks.topk(min(self.clicks, clicks.shape[1]), dim=1).values
        counts = mask.sum(dim=1).clamp(max=self.clicks)
        real = torch.arange(top.shape[1], device=top.device) < counts[:, None]
        top = top.masked_fill(~real.view(*real.shape, *others), 0)
        return products[:, 0] + top.sum(dim=1) / counts.clamp(min=1).view(-1, *others)

    def exported(self, users: Users) -> tuple[Tensor, ...]:
        """Return the share of the user vector, and click vectors with their mask."""
        assert users.mask is not None
        return users.vectors[:, 0], users.vectors[:, 1:], users.mask

    def numbers(self) -> dict[str, Tensor]:
        """Return the share of clicks in a score."""
        return {"mix": self.mix.sigmoid()}

    def settings(self) -> dict[str, Any]:
        """Return how many products are averaged; mix and scale are part of the vectors."""
        return {"head": "late", "clicks": self.clicks}


class InterestMatching(DotMatching):
    """Scores by a maximum over the products with a user's interests.

    With ``logsumexp`` the maximum is smooth, ``t log mean exp(product / t)`` with a learned
    temperature ``t``. Every interest then has a gradient, and equal interests score as one.

    Args:
        interests: Number of vectors of a user.
        combine: ``logsumexp`` or ``max``.
    """

    outputs = ("user_vector", "interest_vectors")

    def __init__(self, interests: int, combine: Combine) -> None:
        super().__init__()
        self.interests = interests
        self.log_temperature = nn.Parameter(torch.zeros(())) if combine == "logsumexp" else None

    def forward(self, vectors: Tensor, history: Tensor, mask: Tensor, scale: Tensor) -> Users:
        """Make users; arguments as in ``DotMatching``."""
        return Users(vectors, None, self.combine)

    def combine(self, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the maximum of a user's products, plain or smooth."""
        products = products.to(torch.promote_types(products.dtype, torch.float32))
        if self.log_temperature is None:
            return products.amax(dim=1)
        temperature = self.log_temperature.exp()
        sums = (products / temperature).logsumexp(dim=1)
        return temperature * (sums - math.log(products.shape[1]))

    def exported(self, users: Users) -> tuple[Tensor, ...]:
        """Return the mean of the interests, and the interests ``[users, interests, dim]``."""
        return users.vectors.mean(dim=1), users.vectors

    def numbers(self) -> dict[str, Tensor]:
        """Return the temperature, if there is one."""
        if self.log_temperature is None:
            return {}
        return {"temperature": self.log_temperature.exp()}

    def settings(self) -> dict[str, Any]:
        """Return the number of interests, and how their products are combined."""
        combine = "max" if self.log_temperature is None else "logsumexp"
        learned = {name: float(value.detach()) for name, value in self.numbers().items()}
        return {"head": "interests", "interests": self.interests, "combine": combine} | learned


def matching_of(
    name: Matching, dim: int, late_clicks: int, interests: int, combine: Combine
) -> DotMatching:
    """Return the matching that ``model.matching`` names, with the options of its kind."""
    if name == "late":
        return LateMatching(dim, late_clicks)
    return InterestMatching(interests, combine) if name == "interests" else DotMatching()
