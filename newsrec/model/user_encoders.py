"""Turns clicked news into user vectors."""

import math

import torch
from torch import Tensor, nn

from newsrec.model.fastformer import (
    Fastformer,
    FastformerConfig,
    init_weights,
    pooling_of,
)
from newsrec.model.plm.blocks import runs_on_cpu
from newsrec.model.sequences import Joined, Mask, masked_mean, masked_softmax

START_SCALE = 10.0
"""Initial scale of the residual path's scores; products of sentence vectors are within about .3."""

QUERY_SIZE = 1.0
"""Standard deviation of the first logits of ``InterestAttention``."""


class InterestAttention(nn.Module):
    """Several learned attention queries over a sequence.

    The queries start far apart, since queries that start alike would long stay alike.

    Args:
        dim: Size of each element.
        interests: Number of queries.
    """

    def __init__(self, dim: int, interests: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # the stack may end without one
        self.query = nn.Linear(dim, interests, bias=False)
        nn.init.normal_(self.query.weight, std=QUERY_SIZE / math.sqrt(dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return each query's attention.

        Args:
            x: Sequence ``[batch, length, dim]``.
            mask: True where ``x`` is real ``[batch, length]``.

        Returns:
            Weights; all zeros in a row whose mask is all False ``[batch, length, interests]``.
        """
        return masked_softmax(self.query(self.norm(x)), mask)


def weighted_sums(x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Return one weighted sum of a sequence per interest, in float32 or better.

    Args:
        x: Sequence ``[batch, length, dim]``.
        weights: As ``InterestAttention`` returns them ``[batch, length, interests]``.
        mask: True where ``x`` is real ``[batch, length]``.

    Returns:
        Sums ``[batch, interests, dim]``.
    """
    with torch.autocast(x.device.type, enabled=False):  # which would round the products
        x = x.to(weights.dtype).masked_fill(~mask[..., None], 0)
        return torch.einsum("bli,bld->bid", weights, x)


class UserEncoder(nn.Module):
    """Fastformer over clicked news, then pooling: one vector per user, or one per interest.

    Users with an empty history share one learned vector instead of zeros: 3 % of MIND's dev
    impressions have no history (``tests/benchmarks/simulate.py``), and they count in the metrics.

    Args:
        dim: Size of news and user vectors.
        fastformer: Shape of the stack over the history: Fastformer, or its softmax twin. With
            ``positions: recency`` it knows how many clicks ago each news item was clicked.
        max_history: Longest history; used only by positions.
        residual: Whether the mean of the history is added. Fastformer then starts behind a closed
            gate, and a learned scale turns products of vectors of length 1 into scores.
        interests: Number of vectors per user, each pooled by a learned attention query of its own.
            With ``residual`` the same attention takes the mean of the history. None pools to one
            vector as ``fastformer.pooling`` says.
    """

    def __init__(
        self,
        dim: int,
        fastformer: FastformerConfig,
        max_history: int,
        residual: bool = False,
        interests: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.joins = interests is None
        """Whether clicks are joined without padding, where that is faster."""
        self.fastformer = Fastformer(dim, fastformer, max_history)
        self.pooling = pooling_of(dim, fastformer) if interests is None else nn.Identity()
        self.attention = None if interests is None else InterestAttention(dim, interests)
        self.empty = nn.Parameter(torch.zeros(dim))
        self.gate = nn.Parameter(torch.zeros(())) if residual else None
        self.log_scale = nn.Parameter(torch.tensor(START_SCALE).log()) if residual else None
        self.pooling.apply(init_weights)

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """Encode users.

        Args:
            history: Vectors of clicked news, oldest first ``[users, history, dim]``.
            mask: True where real; an all-False row is an empty history ``[users, history]``.

        Returns:
            User vectors ``[users, interests, dim]``.
        """
        exporting = torch.compiler.is_exporting()
        if self.joins and not exporting and runs_on_cpu(history.device):
            pooled, mean = self._joined(history, mask)
        elif self.attention is None:
            pooled, mean = self._pooled(history, mask)
        else:
            mixed = self.fastformer(history, mask)
            weights = self.attention(mixed, mask)
            pooled, mean = (weighted_sums(x, weights, mask) for x in (mixed, history))
        if self.gate is not None:
            pooled = self.scale() * (mean + self.gate * pooled)
        return torch.where(mask.any(dim=1)[:, None, None], pooled, self.empty.to(pooled.dtype))

    def _joined(self, history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Do what ``_pooled`` does, over real clicks only, users with fewer clicks first."""
        lengths, order = mask.sum(dim=1).sort(stable=True)
        owner, column = mask[order].nonzero(as_tuple=True)
        clicks = history.flatten(0, 1).index_select(0, order[owner] * mask.shape[1] + column)
        pooled, mean = self._pooled(clicks, Joined.of(lengths))
        back = order.argsort()
        return pooled.index_select(0, back), mean.index_select(0, back)

    def _pooled(self, history: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Return Fastformer's pooled output and the mean of each user ``[users, 1, dim]``."""
        pooled = self.pooling(self.fastformer(history, mask), mask)
        return pooled.unsqueeze(1), masked_mean(history, mask).unsqueeze(1)

    def scale(self) -> Tensor:
        """Return the factor from a product of two news vectors to a score; 1 without residual."""
        return self.empty.new_ones(()) if self.log_scale is None else self.log_scale.exp()

    def gates(self) -> dict[str, Tensor]:
        """Return the gate and the scale of scores, by name; empty without a residual path."""
        if self.gate is None or self.log_scale is None:
            return {}
        return {"user": self.gate, "scale": self.log_scale.exp()}


USER_ENCODERS: dict[str, type[UserEncoder]] = {"fastformer": UserEncoder}
"""User encoders by their name in ``model.user_encoder``."""
