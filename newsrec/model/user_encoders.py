"""Turns clicked news into user vectors."""

import torch
from torch import Tensor, nn

from newsrec.model.fastformer import (
    Fastformer,
    FastformerConfig,
    init_weights,
    masked_mean,
    pooling_of,
)

START_SCALE = 10.0
"""Initial scale of the residual path's scores; products of sentence vectors are within about .3."""


class UserEncoder(nn.Module):
    """Fastformer over clicked news, then pooling: one interest per user.

    Users with an empty history share one learned vector instead of zeros: 3 % of MIND's dev
    impressions have no history (``tests/benchmarks/simulate.py``), and they count in the metrics.

    Args:
        dim: Size of news and user vectors.
        fastformer: Shape of the stack over the history: Fastformer, or its softmax twin. With
            ``positions: recency`` it knows how many clicks ago each news item was clicked.
        max_history: Longest history; used only by positions.
        residual: Whether the mean of the history is added. Fastformer then starts behind a closed
            gate, and a learned scale turns products of vectors of length 1 into scores.
    """

    def __init__(
        self, dim: int, fastformer: FastformerConfig, max_history: int, residual: bool = False
    ) -> None:
        super().__init__()
        self.dim = dim
        self.fastformer = Fastformer(dim, fastformer, max_history)
        self.pooling = pooling_of(dim, fastformer)
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
        pooled = self.pooling(self.fastformer(history, mask), mask)
        if self.gate is not None and self.log_scale is not None:
            mean = masked_mean(history, mask)
            pooled = self.log_scale.exp() * (mean + self.gate * pooled)
        users = torch.where(mask.any(dim=1, keepdim=True), pooled, self.empty.to(pooled.dtype))
        return users.unsqueeze(1)

    def gates(self) -> dict[str, Tensor]:
        """Return the gate and the scale of scores, by name; empty without a residual path."""
        if self.gate is None or self.log_scale is None:
            return {}
        return {"user": self.gate, "scale": self.log_scale.exp()}


USER_ENCODERS: dict[str, type[UserEncoder]] = {"fastformer": UserEncoder}
"""User encoders by their name in ``model.user_encoder``."""
