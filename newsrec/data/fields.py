"""Makes the text of a news item from its fields; imports no PyTorch, so serving can use it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.errors import UserError

FIELDS = ("category", "subcategory", "title", "abstract")
CATEGORIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "category": ("category",),
    "subcategory": ("subcategory",),
    "both": ("category", "subcategory"),
}
"""Choices of ``data.categories``, and the fields whose values have learned vectors."""
FROM_THE_FUTURE = (
    *("total_inviews", "total_pageviews", "total_read_time"),
    *("read_time", "scroll_percentage", "next_read_time", "next_scroll_percentage"),
)
"""Columns of EB-NeRD that are known only after the impression, so they are never read: the totals
of an article count its whole life, and the others are measured when the user leaves the page."""


def check_fields(fields: Sequence[str]) -> None:
    """Refuse names that are not fields of news, or an empty list."""
    unknown = [field for field in fields if field not in FIELDS]
    if unknown and unknown[0] in FROM_THE_FUTURE:
        raise UserError(
            f"data.fields: {unknown[0]} is known only after the impression, so a model that reads "
            f"it predicts clicks from the future. It is never read. Choose from "
            f"{', '.join(FIELDS)}."
        )
    if unknown or not fields:
        raise UserError(
            f"data.fields: {unknown[0] if unknown else 'an empty list'!r} is not a field of a "
            f"news item. Choose from {', '.join(FIELDS)}."
        )


def news_texts(news: pa.Table, fields: Sequence[str]) -> pa.Array:
    """Return the text of each news item: its non-empty fields, joined by spaces ``[news]``."""
    check_fields(fields)
    columns = [news[field].combine_chunks() for field in fields]
    joined = pc.binary_join_element_wise(*columns, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, r"\s+", " "))


class Texts(NamedTuple):
    """What a model reads of news."""

    titles: pa.Array
    """Text made of the model's fields ``[news]``."""
    abstracts: pa.Array | None = None
    """Abstract, empty if there is none ``[news]``; None if the model reads none of its own."""
    category: pa.Array | None = None
    """Category ``[news]``; None if the model has no vectors of categories."""
    subcategory: pa.Array | None = None
    """Subcategory ``[news]``; None if the model has no vectors of subcategories."""

    def take(self, rows: Sequence[int]) -> "Texts":
        """Return the texts of some news."""
        places = pa.array(rows, pa.int64())
        return Texts(*(None if column is None else column.take(places) for column in self))

    def pairs(self) -> list[tuple[str, ...]]:
        """Return for each news item its title and, as far as the model reads them, the others."""
        return list(zip(*(c.to_pylist() for c in self if c is not None), strict=True))

    def hashes(self) -> list[str]:
        """Return 16 hexadecimal digits of the SHA-256 of each news item's texts.

        News with equal hashes share a vector. A line end separates the texts; none contains one.
        """
        texts = map("\n".join, self.pairs())
        return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def read_texts(
    news: pa.Table, fields: Sequence[str], abstracts: bool, categories: Sequence[str] = ()
) -> Texts:
    """Return what a model reads of news.

    Args:
        news: Table with the columns that are read.
        fields: Fields that make up the title's text.
        abstracts: Whether the model reads the abstract as a text of its own.
        categories: Fields whose values have learned vectors.
    """
    own = news_texts(news, ["abstract"]) if abstracts else None
    named = {field: news_texts(news, [field]) for field in categories}
    return Texts(news_texts(news, fields), own, **named)


def category_names(news: pa.Table, fields: Sequence[str]) -> dict[str, list[str]]:
    """Return the distinct values of each field, sorted, without the empty one."""
    found = {field: set(news_texts(news, [field]).to_pylist()) for field in fields}
    return {field: sorted(names - {""}) for field, names in found.items()}


def category_rows(
    names: Mapping[str, Sequence[str]], columns: Mapping[str, pa.Array]
) -> NDArray[np.int64]:
    """Return the row of each value's vector, 0 for a value without one ``[news, fields]``.

    Args:
        names: Values with vectors, of each field; the rows of all fields are counted from 1.
        columns: The values of these fields in some news.
    """
    found, before = [], 1
    for field, known in names.items():
        places = pc.index_in(columns[field], pa.array(known, pa.string()))
        found.append(pc.fill_null(pc.add(places, before), 0).to_numpy(zero_copy_only=False))
        before += len(known)
    return np.stack(found, axis=1).astype(np.int64)
