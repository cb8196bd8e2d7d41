"""Encodes titles as news vectors, with the keywords of ``sentence_transformers``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.console import progress
from newsrec.data.fields import Texts
from newsrec.errors import UserError
from newsrec.serving.catalogue import news_table, texts_of


class TextEncoder(ABC):
    """Something that turns the texts of news into vectors."""

    @property
    @abstractmethod
    def fields(self) -> list[str]:
        """Fields of a news item that make up its title's text."""

    @property
    @abstractmethod
    def reads_abstracts(self) -> bool:
        """Whether the model reads the abstract as a text of its own."""

    @property
    @abstractmethod
    def category_names(self) -> dict[str, list[str]]:
        """Categories and subcategories that have a learned vector; others add nothing."""

    @abstractmethod
    def _encode_texts(self, texts: Texts) -> NDArray[np.float32]:
        """Return the vectors of some news ``[news, dim]``."""

    def encode(
        self,
        titles: str | Sequence[str],
        categories: str | Sequence[str] | None = None,
        subcategories: str | Sequence[str | None] | None = None,
        abstracts: str | Sequence[str | None] | None = None,
        *,
        batch_size: int = 64,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
    ) -> NDArray[np.float32]:
        """Return the vectors of news in the order given ``[news, dim]``; of one title, ``[dim]``.

        Args:
            titles: Titles; may be empty strings.
            categories: As in ``encode_news``, or one text for a single title.
            subcategories: Likewise.
            abstracts: Likewise.
            batch_size: News encoded at once; news of similar length is encoded together.
            show_progress_bar: Whether to show a progress bar, if stderr is a terminal.
            normalize_embeddings: Whether to scale each vector to length 1. The product of such a
                vector with a user vector is not the model's score.

        Raises:
            UserError: As in ``encode_news``, and if ``batch_size`` is not 1 or more.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; it must be 1 or more.")
        one = isinstance(titles, str)
        given = (titles, categories, subcategories, abstracts)
        lists = [[column] if one and column is not None else column for column in given]
        texts = self._texts(*lists)
        pairs = texts.pairs()
        places = {pair: place for place, pair in enumerate(pairs)}
        distinct = sorted(places, key=lambda pair: max(map(len, pair)))
        parts = []
        slow = 1 if show_progress_bar else len(distinct) + 1
        with progress("encoding", len(distinct), slow, _rate) as advance:
            for start in range(0, len(distinct), batch_size):
                part = distinct[start : start + batch_size]
                parts.append(self._encode_texts(texts.take([places[pair] for pair in part])))
                advance(len(part))
        rows = {pair: row for row, pair in enumerate(distinct)}
        vectors = np.concatenate(parts or [self._encode_texts(texts)])[[rows[p] for p in pairs]]
        if normalize_embeddings:
            length = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(length, np.finfo(np.float32).tiny)
        found: NDArray[np.float32] = vectors[0] if one else vectors
        return found

    def encode_news(
        self,
        titles: Sequence[str],
        categories: Sequence[str] | None = None,
        subcategories: Sequence[str | None] | None = None,
        abstracts: Sequence[str | None] | None = None,
    ) -> NDArray[np.float32]:
        """Return the vectors of news, which need not be in the catalogue ``[news, dim]``.

        Args:
            titles: Titles; may be empty strings.
            categories: Category for each title. This and the following lists are required only if
                the model reads the field.
            subcategories: Subcategory for each title; None counts as empty.
            abstracts: Abstract for each title; None counts as empty.

        Raises:
            UserError: If lists differ in length, or a field that the model reads is missing.
        """
        return self._encode_texts(self._texts(titles, categories, subcategories, abstracts))

    def _texts(self, *columns: Any) -> Texts:
        """Return what the model reads of some news; arguments as in ``encode_news``."""
        table = news_table(*columns)
        return texts_of(table, self.fields, self.reads_abstracts, tuple(self.category_names))


def _rate(done_per_second: float) -> str:
    return f"{done_per_second:,.0f} news/s"
