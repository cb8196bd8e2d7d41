"""Reads the annotations of news: the sentiment of each item, and the named entities in it.

These columns are optional. A table of news has them only if its files do.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers import parquet_checks as checks
from newsrec.data.readers.base import Rows
from newsrec.data.readers.parquet_columns import (
    LONGEST_TEXT,
    Lists,
    as_bools,
    as_text,
    shown,
    too_long,
)
from newsrec.data.readers.parquet_table import Check

SENTIMENT, ENTITIES = "sentiment", "entities"
"""Columns of a table of news.

``sentiment`` is a number from -1 (negative) to 1 (positive), null if unknown. ``entities`` is a
list of persons, places and so on, null if unknown, each with ``name`` and ``type``; an entity that
the file lists twice is in it twice.
"""
LABELS = ("negative", "neutral", "positive")
"""EB-NeRD's labels of a sentiment, in lower case; the score of a label is its probability."""


class Columns(NamedTuple):
    """Names of the annotated columns in a format."""

    sentiment: str
    entities: str
    types: str
    label: str | None = None
    """Column with the label whose probability ``sentiment`` is; None if ``sentiment`` is a number
    from -1 to 1."""

    def checks(self) -> dict[str, Check]:
        """Return the check of each column's type."""
        found: dict[str, Check] = dict.fromkeys((self.entities, self.types), checks.texts)
        found[self.sentiment] = checks.a_measure
        if self.label is not None:
            found[self.label] = checks.a_text
        return found


OWN = Columns(SENTIMENT, ENTITIES, "entity_types")
EBNERD = Columns("sentiment_score", "ner_clusters", "entity_groups", "sentiment_label")


def read_annotations(rows: Rows, columns: Columns) -> tuple[Rows, dict[str, pa.Array]]:
    """Return the rows whose annotations can be read, and the annotated columns that they have."""
    names = rows.table.column_names
    sentiment = columns.sentiment in names and (columns.label is None or columns.label in names)
    entities = columns.entities in names
    types = entities and columns.types in names
    # Check all columns before reading any, since each check may leave out rows.
    if sentiment:
        rows = _require_sentiment(rows, columns)
    if entities:
        rows = _require_texts(rows, columns.entities)
    if types:
        rows = _require_texts(rows, columns.types)
        own, other = (
            Lists.of(rows.column(name)).lengths for name in (columns.types, columns.entities)
        )
        problem = f"not as many values as in {columns.entities}"
        rows = rows.require(
            own == other, columns.types, problem, lambda row: f"{own[row]}, not {other[row]}"
        )
    found: dict[str, pa.Array] = {}
    if sentiment:
        found[SENTIMENT] = _sentiment(rows, columns)
    if entities:
        lists = _texts(rows, columns.entities)
        named = pc.utf8_trim_whitespace(pc.fill_null(lists.values, ""))
        kinds = pa.nulls(len(named), pa.string())
        if types:
            kinds = _texts(rows, columns.types).values
        filled = as_bools(pc.not_equal(named, ""))
        offsets = Ragged(filled, lists.offsets).select(filled).offsets
        listed = pa.StructArray.from_arrays([named, kinds], ["name", "type"])
        found[ENTITIES] = pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), listed.filter(pa.array(filled))
        )
    return rows, found


def without_empty(news: pa.Table) -> pa.Table:
    """Return a table of news without the annotated columns in which no news item has a value."""
    if SENTIMENT in news.column_names and news[SENTIMENT].null_count == len(news):
        news = news.drop_columns([SENTIMENT])
    if ENTITIES in news.column_names and not len(pc.list_flatten(news[ENTITIES])):
        news = news.drop_columns([ENTITIES])
    return news


def text_bytes(column: pa.Array) -> int:
    """Return the number of bytes of a column's texts or names of entities; 0 for numbers."""
    parts = column.flatten().flatten() if checks.is_list(column.type) else [column]
    texts = [part for part in parts if checks.is_text(part.type)]
    return sum(pc.sum(pc.binary_length(text)).as_py() or 0 for text in texts)


def _require_sentiment(rows: Rows, columns: Columns) -> Rows:
    name, label = columns.sentiment, columns.label
    number = _numbers(rows.column(name))
    lowest = -1 if label is None else 0
    good = np.isnan(number) | ((number >= lowest) & (number <= 1))
    rows = rows.require(good, name, f"not a number from {lowest} to 1", shown(rows, name))
    if label is not None:
        text = pc.utf8_lower(pc.fill_null(as_text(rows.column(label)), ""))
        good = pc.is_in(text, pa.array(["", *LABELS]))
        problem = "neither Positive, Neutral nor Negative"
        rows = rows.require(good, label, problem, shown(rows, label))
    return rows


def _sentiment(rows: Rows, columns: Columns) -> pa.Array:
    number = _numbers(rows.column(columns.sentiment))
    if columns.label is not None:
        text = pc.utf8_lower(pc.fill_null(as_text(rows.column(columns.label)), ""))
        sign = pc.index_in(text, pa.array(LABELS)).cast(pa.float32())
        number *= sign.fill_null(np.nan).to_numpy(zero_copy_only=False) - 1
    return pa.array(number, mask=np.isnan(number))


def _numbers(column: pa.Array) -> NDArray[np.float32]:
    """Return numbers, NaN for null ``[rows]``."""
    number: NDArray[np.float32] = (
        column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy().astype(np.float32)
    )
    return number


def _texts(rows: Rows, name: str) -> Lists:
    """Return a column of lists of texts; texts that are not UTF-8 are null."""
    lists = Lists.of(rows.column(name))
    if pa.types.is_null(lists.values.type):
        return lists._replace(values=lists.values.cast(pa.string()))
    return lists._replace(values=as_text(lists.values))


def _require_texts(rows: Rows, name: str) -> Rows:
    """Return the rows whose texts are UTF-8, and together not too long."""
    lists = Lists.of(rows.column(name))
    if pa.types.is_null(lists.values.type):
        return rows
    values = lists.values
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    size = pc.fill_null(pc.binary_length(encoded.dictionary).take(encoded.indices), 0)
    total = to_offsets(size.to_numpy(zero_copy_only=False))[lists.offsets]
    rows = rows.require(np.diff(total) <= LONGEST_TEXT, name, too_long(), shown(rows, name))
    given, read = Lists.of(rows.column(name)), _texts(rows, name)
    lost = as_bools(pc.and_(given.values.is_valid(), read.values.is_null()))
    return rows.require(~read.rows_with(lost), name, "not UTF-8", shown(rows, name))
