"""The batches that the data side makes and the model side reads."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HASH_BYTES = 16
"""Bytes of the hash that identifies a text."""


class SharedClicks(NamedTuple):
    """Clicked news that samples, of all processes, share as negatives; for the loss in_batch."""

    news: Tensor
    """Catalogue row of each sample's clicked news item, padded with 0 to the largest batch of the
    step, so that the processes can join theirs ``[largest]``."""
    share: Tensor
    """Share of the training samples that click the same news item, or 0 ``[largest]``."""
    user: Tensor
    """Number of each sample's user, or 0 ``[largest]``."""
    excluded: Tensor
    """Catalogue rows that are no further negatives of a sample: its candidates, and the news that
    its user clicked in the whole history or in any training sample; ascending, with zeros in front
    ``[batch, rows]``."""


class Batch(NamedTuple):
    """Training samples and the news that they mention, each news item once.

    A news item is one text, or has a title and an abstract; ``views`` then has the rows of both.
    """

    token_ids: Tensor
    """Tokens of each text; rows 0 and 1 empty, then sorted by length ``[texts, tokens]``."""
    token_lengths: NDArray[np.int64]
    """Real tokens of each text ``[texts]``. Not a tensor: DDP looks into named tuples and would
    move it to the GPU, but it is needed on the CPU, where texts are cut by length."""
    token_states: Tensor | None
    """States below the PLM's tuned layers, of the real tokens of all texts joined
    ``[tokens, hidden]``; with them the frozen layers need not run."""
    history: Tensor
    """News in each distinct history, oldest first, padded with 0 ``[users, history]``. Values are
    rows of ``views``, or of ``token_ids`` if ``views`` is None."""
    user: Tensor
    """Row of ``history`` that belongs to each sample ``[batch]``."""
    candidates: Tensor
    """News, as in ``history``; 0 if there are too few skipped news ``[batch, candidates]``."""
    labels: Tensor
    """1 clicked, 0 skipped or padding; one click per row, or more where a sample is a whole
    impression ``[batch, candidates]``."""
    shared: SharedClicks | None = None
    """Clicked news to share as negatives; None unless the loss needs them."""
    views: Tensor | None = None
    """Rows of ``token_ids`` with the title and the abstract of each news item, 0 for no abstract
    ``[news, 2]``; None if each news item is one text, in the row of the news item."""
    categories: Tensor | None = None
    """Rows of the vectors of each news item's category and subcategory, or of one of them; 0 for an
    unknown one ``[news, fields]``; None if categories have no vectors."""

    @property
    def num_news(self) -> int:
        """Number of news, rows 0 and 1 included."""
        return len(self.token_lengths if self.views is None else self.views)

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
    """Tokens of all texts; row 0 is padding, row 1 the unknown news, both without tokens.

    A news item is one text, in the row of the news item, or has a title and an abstract. Title and
    abstract are neighbours, in the order of the news, so the first news have the first texts.
    """

    token_ids: Tensor
    """Tokens, padded with 0 ``[texts, max_tokens]``."""
    token_lengths: Tensor
    """Real tokens, on the CPU ``[texts]``."""
    first: Tensor
    """Lowest row with the same tokens; equal texts are encoded once ``[texts]``."""
    views: Tensor | None = None
    """Rows of each news item's title and abstract, 0 for no abstract ``[news, 2]``; None if each
    news item is one text."""
    categories: Tensor | None = None
    """Rows of the vectors of each news item's category and subcategory, or of one of them; 0 for an
    unknown one ``[news, fields]``; None if categories have no vectors."""

    @property
    def num_news(self) -> int:
        """Number of news, padding and the unknown news included."""
        return len(self.first if self.views is None else self.views)

    @property
    def news_lengths(self) -> Tensor:
        """Real tokens of all texts of each news item ``[news]``."""
        lengths = self.token_lengths
        return lengths if self.views is None else lengths[self.views].sum(dim=1)

    def text_hashes(self, rows: Tensor) -> list[bytes]:
        """Return a hash of the real tokens of each given row ``[rows]``."""
        token_ids, lengths = self.token_ids.numpy(), self.token_lengths.tolist()
        return [
            hashlib.blake2b(token_ids[r, : lengths[r]].tobytes(), digest_size=HASH_BYTES).digest()
            for r in rows.tolist()
        ]

    def of_titles(self, values: Tensor) -> Tensor:
        """Select the values of titles from values of texts ``[news, ...]``."""
        return values if self.views is None else values[self.views[:, 0]]

    def of_abstracts(self, values: Tensor) -> Tensor:
        """Select the values of existing abstracts from values of texts ``[abstracts, ...]``."""
        rows = torch.zeros(0, dtype=torch.int64) if self.views is None else self.views[:, 1]
        return values[rows[rows > 0]]

    def head(self, news: int) -> "Catalogue":
        """Return the catalogue of the first ``news`` news; arrays are shared, not copied."""
        views = None if self.views is None else self.views[:news]
        texts = news if views is None else int(views.max()) + 1
        token_ids, token_lengths, first = (values[:texts] for values in self[:3])
        categories = None if self.categories is None else self.categories[:news]
        return Catalogue(token_ids, token_lengths, first, views, categories)
