"""Makes the text of a news item from its fields; imports no PyTorch, so serving can use it."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from newsrec.errors import UserError

FIELDS = ("category", "subcategory", "title", "abstract")
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


def text_hashes(texts: pa.Array) -> list[str]:
    """Return 16 hexadecimal digits of each text's SHA-256; news with equal texts share a vector."""
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts.to_pylist()]
