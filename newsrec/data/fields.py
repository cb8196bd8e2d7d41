"""What a story's text is made of; pyarrow alone, for who serves a model without PyTorch."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from newsrec.errors import UserError

FIELDS = ("category", "subcategory", "title", "abstract")


def check_fields(fields: Sequence[str]) -> None:
    """Refuse names that are no fields of a story.

    Raises:
        UserError: If one is not of ``FIELDS``, or there are none.
    """
    unknown = [field for field in fields if field not in FIELDS]
    if unknown or not fields:
        raise UserError(
            f"data.fields: {unknown[0] if unknown else 'an empty list'!r} is not a field of a "
            f"story. Choose from {', '.join(FIELDS)}."
        )


def story_texts(news: pa.Table, fields: Sequence[str]) -> pa.Array:
    """Return each story's text: its non-empty fields joined by a space ``[stories]``.

    Args:
        news: Table with the columns ``FIELDS``.
        fields: Which of them, in the order in which they are read.

    Raises:
        UserError: If a field is not one of ``FIELDS``.
    """
    check_fields(fields)
    columns = [news[field].combine_chunks() for field in fields]
    joined = pc.binary_join_element_wise(*columns, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, r"\s+", " "))


def text_hashes(texts: pa.Array) -> list[str]:
    """Return 16 hexadecimal digits of each text's SHA-256: the same text, the same vector."""
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts.to_pylist()]
