"""Makes the text of a news item from its fields; imports no PyTorch, so serving can use it."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from newsrec.errors import UserError

FIELDS = ("category", "subcategory", "title", "abstract")


def check_fields(fields: Sequence[str]) -> None:
    """Check that the given names are fields of news.

    Raises:
        UserError: If a name is not in ``FIELDS``, or there are no names.
    """
    unknown = [field for field in fields if field not in FIELDS]
    if unknown or not fields:
        raise UserError(
            f"data.fields: {unknown[0] if unknown else 'an empty list'!r} is not a field of a "
            f"news item. Choose from {', '.join(FIELDS)}."
        )


def news_texts(news: pa.Table, fields: Sequence[str]) -> pa.Array:
    """Return the text of each news item: its non-empty fields joined by a space ``[news]``.

    Args:
        news: Table with the columns ``FIELDS``.
        fields: The columns to join, in this order.

    Raises:
        UserError: If a field is not in ``FIELDS``, or there are none.
    """
    check_fields(fields)
    columns = [news[field].combine_chunks() for field in fields]
    joined = pc.binary_join_element_wise(*columns, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, r"\s+", " "))


def text_hashes(texts: pa.Array) -> list[str]:
    """Return 16 hexadecimal digits of each text's SHA-256; news with equal texts share a vector."""
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts.to_pylist()]
