"""Heads (``model.matching``): make the vectors that a user is scored by from the user encoder's.

A head has the learned numbers of this step; ``newsrec.model.matching`` computes the scores.
To add one, write a class, add its name to ``Matching`` and ``head_of``, and write its twin in
``newsrec.serving.matching``.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from newsrec.model.matching import Users, highest, smooth_highest, with_clicks

Matching = Literal["dot", "late", "interests"]
Combine = Literal["logsumexp", "max"]


class DotHead(nn.Module):
    """Scores by the product with the user vector."""

    outputs: tuple[str, ...] = ("user_vector",)
    """Names of what ``exported`` returns, which are the exported graph's outputs."""

    appeal: nn.Parameter | None
    """What all users like: a vector added to every user vector ``[dim]``; None without appeal.
    The product with a news vector is then ``(user vector + appeal) . news vector``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("appeal", None)

    def forward(self, vectors: Tensor, history: Tensor, mask: Tensor, scale: Tensor) -> Users:
        """Make users from the user encoder's vectors, and add the appeal.

        Args:
            vectors: User vectors ``[users, interests, dim]``.
            history: Vectors of clicked news ``[users, history, dim]``.
            mask: True where a click is real ``[users, history]``.
            scale: Factor from a product of two news vectors to a score.
        """
        return self.with_appeal(Users(vectors))

    def with_appeal(self, users: Users) -> Users:
        """Add the appeal to the vectors of users, but with ``late`` not to the click vectors."""
        if self.appeal is None:
            return users
        appeal = self.appeal.to(users.vectors.dtype)
        if users.mask is None:
            return replace(users, vectors=users.vectors + appeal)
        own, clicks = users.vectors.tensor_split([1], dim=1)
        return replace(users, vectors=torch.cat([own + appeal, clicks], dim=1))

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


class LateHead(DotHead):
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
        """Make users; arguments as in ``DotHead``. Mix and scale become part of the vectors."""
        share = self.mix.sigmoid()
        clicked = mask.any(dim=1)[:, None, None]
        own = torch.where(clicked, (1 - share) * vectors, vectors)
        clicks = share * scale * (history + self.change(history))
        clicks = clicks.masked_fill(~mask[..., None], 0)
        vectors = torch.cat([own, clicks.to(own.dtype)], dim=1)
        return self.with_appeal(Users(vectors, mask, self.combine))

    def combine(self, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Add the mean of the largest products with clicks to the product with the user vector."""
        assert mask is not None
        return with_clicks(products, mask, self.clicks)

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


class InterestHead(DotHead):
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
        """Make users; arguments as in ``DotHead``."""
        return self.with_appeal(Users(vectors, None, self.combine))

    def combine(self, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the maximum of a user's products, plain or smooth."""
        if self.log_temperature is None:
            return highest(products)
        return smooth_highest(products, self.log_temperature.exp())

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


def head_of(
    name: Matching,
    dim: int,
    late_clicks: int,
    interests: int,
    combine: Combine,
    appeal: bool = False,
) -> DotHead:
    """Return the head that ``model.matching`` names, with the options of its kind."""
    head = DotHead()
    if name == "late":
        head = LateHead(dim, late_clicks)
    elif name == "interests":
        head = InterestHead(interests, combine)
    if appeal:
        head.appeal = nn.Parameter(torch.zeros(dim))
    return head
