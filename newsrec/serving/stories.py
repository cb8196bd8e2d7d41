"""The catalogue that a recommender serves: never changed, but replaced as a whole.

Who reads it while stories are added therefore sees the old one or the new one, and no mixture.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.fields import FIELDS, story_texts
from newsrec.errors import UserError
from newsrec.serving.arguments import require_strings
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, with_unknown

MAY_BE_NONE = ("subcategory", "abstract")
"""Fields that many stories lack."""

ARGUMENTS = dict(zip(FIELDS, ("categories", "subcategories", "titles", "abstracts"), strict=True))
"""Field of a story to the argument that brings it."""


class Stories(NamedTuple):
    """Stories that can be recommended."""

    table: pa.Table
    """One line for each story, of ``NEWS_SCHEMA``; line ``i`` has row ``FIRST_NEWS + i``."""
    vectors: NDArray[np.float32]
    """Row 0 is zeros, row 1 the unknown story: the mean of the real ones ``[news, dim]``."""
    ids: list[str]
    """Id of each line of ``table``."""
    rows: dict[str, int]
    """Row of each id."""

    @classmethod
    def of(cls, news: StoredNews) -> "Stories":
        """Return stories that were read from a folder."""
        ids = news.table["news_id"].to_pylist()
        rows = dict(zip(ids, range(FIRST_NEWS, FIRST_NEWS + len(ids)), strict=True))
        # Not as a memory map, whose own indexing is slow; the pages stay the file's.
        return cls(news.table, np.asarray(news.vectors), ids, rows)

    def text_hashes(self) -> dict[str, str]:
        """Return the hash of the text that each story's vector was made from."""
        return dict(zip(self.ids, self.table["text_hash"].to_pylist(), strict=True))

    def updated(self, table: pa.Table, vectors: NDArray[np.float32]) -> "Stories":
        """Return these stories with others, which take the place of those with the same id.

        Args:
            table: The others, each id once; columns of ``NEWS_SCHEMA`` but ``row``.
            vectors: Their vectors ``[stories, dim]``.
        """
        table = table.add_column(0, "row", pa.nulls(len(table), pa.int64()))
        known = self.table.select(NEWS_SCHEMA.names).cast(NEWS_SCHEMA)
        table = pa.concat_tables([known, table])
        order = list(range(len(self.ids)))  # line of the joined table that stands at each place
        for line, news_id in enumerate(table["news_id"][len(order) :].to_pylist(), len(order)):
            if news_id in self.rows:
                order[self.rows[news_id] - FIRST_NEWS] = line
            else:
                order.append(line)
        rows = pa.array(range(FIRST_NEWS, FIRST_NEWS + len(order)), pa.int64())
        table = table.take(order).set_column(0, NEWS_SCHEMA.field("row"), rows).combine_chunks()
        real = np.concatenate([self.vectors[FIRST_NEWS:], vectors])[order]
        return Stories.of(StoredNews(table, with_unknown(real)))


def story_table(
    titles: Sequence[str],
    categories: Sequence[str] | None,
    subcategories: Sequence[str | None] | None,
    abstracts: Sequence[str | None] | None,
) -> pa.Table:
    """Return stories as a table with the columns that were given, of ``FIELDS``.

    Raises:
        UserError: If a column is no list of strings, or not as long as the titles.
    """
    given = zip(FIELDS, (categories, subcategories, titles, abstracts), strict=True)
    columns = {
        field: require_strings(column, ARGUMENTS[field], none_is_empty=field in MAY_BE_NONE)
        for field, column in given
        if field == "title" or column is not None
    }
    for field, column in columns.items():
        require_same_number(columns["title"], "titles", column, ARGUMENTS[field])
    return pa.table({field: pa.array(column, pa.string()) for field, column in columns.items()})


def texts_of(table: pa.Table, fields: Sequence[str]) -> pa.Array:
    """Return what the model reads of each story ``[stories]``.

    Args:
        table: What ``story_table`` gives.
        fields: What the model reads.

    Raises:
        UserError: If a field was not given.
    """
    missing = [field for field in fields if field not in table.column_names]
    if missing:
        raise UserError(
            f"This model reads a story's {', '.join(fields)}: give {ARGUMENTS[missing[0]]} too, "
            "one for each title."
        )
    return story_texts(table, fields)


def require_same_number(
    first: Sequence[object], name: str, second: Sequence[object], other: str
) -> None:
    """Refuse lists that do not belong together.

    Raises:
        UserError: If they differ in length.
    """
    if len(first) != len(second):
        raise UserError(
            f"{name} has {len(first):,} entries and {other} {len(second):,}; give one for each."
        )


def of_categories(table: pa.Table, categories: Sequence[str]) -> NDArray[np.bool_]:
    """Return which stories are of these categories ``[news]``.

    Raises:
        UserError: If there is a category that no story has, or none at all.
    """
    wanted = require_strings(categories, "categories")
    if not wanted:
        raise UserError("categories is an empty list; leave it out to recommend from all.")
    known = table["category"].unique().drop_null().to_pylist()
    for category in wanted:
        if category not in known:
            near = difflib.get_close_matches(category, known) or sorted(known)[:10]
            raise UserError(
                f"No story is of the category {category!r}. There is {', '.join(near)}."
            )
    found: NDArray[np.bool_] = pc.is_in(table["category"], pa.array(wanted, pa.string())).to_numpy()
    return found
