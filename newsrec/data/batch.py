"""The batches that the data side makes and the model side reads."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SharedClicks(NamedTuple):
    """Clicked news that samples, of all processes, share as negatives; for the loss in_batch."""

    news: Tensor
    """Catalogue row of each sample's clicked news item, padded with 0 to the largest batch of the
    step, so that the processes can join theirs ``[largest]``."""
    share: Tensor
    """Share of the training samples that click the same news item, or 0 ``[largest]``."""
    excluded: Tensor
    """Catalogue rows that are no further negatives of a sample: its candidates, and the news that
    its user clicked in the whole history or in the impression; ascending, with zeros in front
    ``[batch, rows]``."""


class Batch(NamedTuple):
    """Training samples and the news that they mention, each news item once."""

    token_ids: Tensor
    """Tokens of each news item; rows 0 and 1 empty, then sorted by length ``[news, tokens]``."""
    token_lengths: NDArray[np.int64]
    """Real tokens of each news item ``[news]``. Not a tensor: DDP looks into named tuples and would
    move it to the GPU, but it is needed on the CPU, where texts are cut by length."""
    token_states: Tensor | None
    """States below the PLM's tuned layers, of the real tokens of all news joined
    ``[tokens, hidden]``; with them the frozen layers need not run."""
    history: Tensor
    """Rows of ``token_ids`` in each distinct history, oldest first, padded with 0
    ``[users, history]``."""
    user: Tensor
    """Row of ``history`` that belongs to each sample ``[batch]``."""
    candidates: Tensor
    """Rows of ``token_ids``; 0 if there are too few skipped news ``[batch, candidates]``."""
    labels: Tensor
    """1 clicked, 0 skipped or padding; one click per row, or more where a sample is a whole
    impression ``[batch, candidates]``."""
    shared: SharedClicks | None = None
    """Clicked news to share as negatives; None unless the loss needs them."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Move the tensors to a device; ``token_lengths`` stays on the CPU, where it is needed.

        Copies from pinned memory never block, even if ``non_blocking`` is False: Lightning sets it
        only for plain tensors.
        """

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=non_blocking or value.is_pinned())

        moved: dict[str, Any] = {
            name: SharedClicks(*map(move, value)) if name == "shared" else move(value)
            for name, value in self._asdict().items()
            if name != "token_lengths" and value is not None
        }
        return self._replace(**moved)


class EvalBatch(NamedTuple):
    """Impressions to score with news vectors that were computed before."""

    history: Tensor
    """Catalogue rows of each distinct history, oldest first, padded with 0 ``[users, history]``."""
    user: Tensor
    """Row of ``history`` that belongs to each impression ``[impressions]``."""
    candidates: Tensor
    """Catalogue rows, the candidates of all impressions joined ``[candidates]``."""
    offsets: Tensor
    """Where each impression's candidates begin, and the end ``[impressions + 1]``."""
    labels: Tensor | None
    """1 clicked, 0 skipped ``[candidates]``; None where the split has no labels."""
    row: Tensor
    """Position of each impression in its file ``[impressions]``."""


class Catalogue(NamedTuple):
    """Tokens of all news; row 0 is padding, row 1 the unknown news, both without tokens."""

    token_ids: Tensor
    """Tokens, padded with 0 ``[news, max_tokens]``."""
    token_lengths: Tensor
    """Real tokens, on the CPU ``[news]``."""
    first: Tensor
    """Lowest row with the same tokens; news with equal tokens are encoded once ``[news]``."""

    def head(self, rows: int) -> "Catalogue":
        """Return the first ``rows`` rows; they are shared, not copied."""
        return Catalogue(*(values[:rows] for values in self))
