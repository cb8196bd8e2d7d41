"""The contract between data and model: what a batch holds."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """Training samples and the stories that they mention, each story once."""

    token_ids: Tensor
    """Tokens of each story, rows 0 and 1 empty, then sorted by length ``[news, tokens]``."""
    token_lengths: NDArray[np.int64]
    """Real tokens of each story ``[news]``. Not a tensor, so that nothing which moves tensors (DDP
    looks into named tuples) takes it from the host, where texts are cut by length."""
    token_states: Tensor | None
    """States below the PLM's tuned layers, of the real tokens of all stories joined, in place of
    running the frozen layers ``[tokens, hidden]``."""
    history: Tensor
    """Rows of ``token_ids`` that each distinct history holds, oldest first, padded with 0
    ``[users, history]``."""
    user: Tensor
    """Row of ``history`` that each sample belongs to ``[batch]``."""
    candidates: Tensor
    """Rows of ``token_ids``; 0 where an impression has too few skips ``[batch, candidates]``."""
    labels: Tensor
    """1 clicked, 0 skipped or padding; one click per row ``[batch, candidates]``."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Move to a device; ``token_lengths`` stays, since cutting by length needs no GPU.

        From pinned memory nobody waits for the copies, even where Lightning does not ask for that:
        it does so for tensors alone.
        """
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking or value.is_pinned())
            for name, value in self._asdict().items()
            if name != "token_lengths" and value is not None
        }
        return self._replace(**moved)


class EvalBatch(NamedTuple):
    """Impressions to score against story vectors that were made once."""

    history: Tensor
    """Catalogue rows of each distinct history, oldest first, padded with 0 ``[users, history]``."""
    user: Tensor
    """Row of ``history`` that each impression belongs to ``[impressions]``."""
    candidates: Tensor
    """Catalogue rows, all impressions joined ``[candidates]``."""
    offsets: Tensor
    """Where each impression's candidates begin, and the end ``[impressions + 1]``."""
    labels: Tensor | None
    """1 clicked, 0 skipped ``[candidates]``; None where the split has no labels."""
    row: Tensor
    """Position of each impression in its file ``[impressions]``."""


class Catalogue(NamedTuple):
    """Every story's tokens: row 0 padding, row 1 the unknown story, both without tokens."""

    token_ids: Tensor
    """Tokens, padded with 0 ``[news, max_tokens]``."""
    token_lengths: Tensor
    """Real tokens, on the CPU ``[news]``."""
    first: Tensor
    """Lowest row with the same tokens: such stories are encoded once ``[news]``."""

    def head(self, rows: int) -> "Catalogue":
        """Return the first rows; they are shared, not copied."""
        return Catalogue(*(values[:rows] for values in self))
