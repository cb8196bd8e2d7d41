"""The catalogue of a recommender: never changed, only replaced as a whole.

So a thread that uses it while news is added sees either the old or the new catalogue.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.fields import FIELDS, Texts, read_texts
from newsrec.errors import UserError
from newsrec.serving.arguments import Found, look_up, require_list, require_strings
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, with_unknown
from newsrec.serving.vectors import Vectors, concatenate, kind_of, pack, part, take

MAY_BE_NONE = ("subcategory", "abstract")
"""Fields that many news lack, so None is allowed."""

ARGUMENTS = dict(zip(FIELDS, ("categories", "subcategories", "titles", "abstracts"), strict=True))
"""Field of a news item to the argument that gives it."""


class Catalogue(NamedTuple):
    """News that can be recommended."""

    table: pa.Table
    """One line per news item, with ``NEWS_SCHEMA``; line ``i`` has row ``FIRST_NEWS + i``."""
    vectors: Vectors
    """Row 0 is zeros, row 1 the unknown news: the mean of the real news ``[news, dim]``."""
    ids: list[str]
    """Id of each line of ``table``."""
    rows: dict[str, int]
    """Row of each id."""

    @classmethod
    def of(cls, news: StoredNews) -> "Catalogue":
        """Make a catalogue from the news of a folder."""
        ids = news.table["news_id"].to_pylist()
        rows = dict(zip(ids, range(FIRST_NEWS, FIRST_NEWS + len(ids)), strict=True))
        return cls(news.table, news.vectors, ids, rows)

    @property
    def real_vectors(self) -> Vectors:
        """Vectors of the lines of ``table``, neither decoded nor copied ``[news, dim]``."""
        return part(self.vectors, slice(FIRST_NEWS, None))

    def look_up_all(self, histories: Sequence[Sequence[str]]) -> list[Found]:
        """Return each history's known rows and unknown ids."""
        require_list(histories, "histories")
        return [look_up(ids, self.rows, f"histories[{user}]") for user, ids in enumerate(histories)]

    def text_hashes(self) -> dict[str, str]:
        """Return, by id, the hash of the text that the vector was made from."""
        return dict(zip(self.ids, self.table["text_hash"].to_pylist(), strict=True))

    def updated(self, table: pa.Table, vectors: NDArray[np.float32]) -> "Catalogue":
        """Return a catalogue with further news, which replace those with the same id.

        Args:
            table: The further news, each id once, with the columns of ``NEWS_SCHEMA`` except
                ``row``.
            vectors: Vectors of the further news, which are stored in the catalogue's type
                ``[news, dim]``.
        """
        table = table.add_column(0, "row", pa.nulls(len(table), pa.int64()))
        known = self.table.select(NEWS_SCHEMA.names).cast(NEWS_SCHEMA)
        table = pa.concat_tables([known, table])
        order = list(range(len(self.ids)))  # for each place, a line of the joined table
        for line, news_id in enumerate(table["news_id"][len(order) :].to_pylist(), len(order)):
            if news_id in self.rows:
                order[self.rows[news_id] - FIRST_NEWS] = line
            else:
                order.append(line)
        rows = pa.array(range(FIRST_NEWS, FIRST_NEWS + len(order)), pa.int64())
        table = table.take(order).set_column(0, NEWS_SCHEMA.field("row"), rows).combine_chunks()
        joined = concatenate([self.real_vectors, pack(vectors, kind_of(self.vectors))])
        return Catalogue.of(StoredNews(table, with_unknown(take(joined, order))))


def news_table(
    titles: Sequence[str],
    categories: Sequence[str] | None,
    subcategories: Sequence[str | None] | None,
    abstracts: Sequence[str | None] | None,
) -> pa.Table:
    """Return news as a table with those columns of ``FIELDS`` that were given.

    Raises:
        UserError: If a column is not a list of strings, or not as long as the titles.
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


def texts_of(
    table: pa.Table, fields: Sequence[str], abstracts: bool, categories: Sequence[str] = ()
) -> Texts:
    """Return what a model reads of news.

    Args:
        table: A table from ``news_table``.
        fields: Fields that make up the title's text.
        abstracts: Whether the model reads the abstract as a text of its own.
        categories: Fields whose values have learned vectors.

    Raises:
        UserError: If a field is not in the table.
    """
    read = list(dict.fromkeys([*fields, *(["abstract"] if abstracts else []), *categories]))
    missing = [field for field in read if field not in table.column_names]
    if missing:
        raise UserError(
            f"This model reads a news item's {', '.join(read)}: give {ARGUMENTS[missing[0]]}, "
            "too, one for each title."
        )
    return read_texts(table, fields, abstracts, categories)


def require_same_number(
    first: Sequence[object], name: str, second: Sequence[object], other: str
) -> None:
    """Check that two lists have the same length.

    Raises:
        UserError: If they do not.
    """
    if len(first) != len(second):
        raise UserError(
            f"{name} has {len(first):,} entries and {other} {len(second):,}; give one for each."
        )


def of_categories(table: pa.Table, categories: Sequence[str]) -> NDArray[np.bool_]:
    """Return True for news in these categories ``[news]``.

    Raises:
        UserError: If no news is in a category, or the list is empty.
    """
    wanted = require_strings(categories, "categories")
    if not wanted:
        raise UserError("categories is an empty list; leave it out to recommend from all.")
    known = table["category"].unique().drop_null().to_pylist()
    for category in wanted:
        if category not in known:
            near = difflib.get_close_matches(category, known) or sorted(known)[:10]
            raise UserError(
                f"No news item is of the category {category!r}. There is {', '.join(near)}."
            )
    found: NDArray[np.bool_] = pc.is_in(table["category"], pa.array(wanted, pa.string())).to_numpy()
    return found


def category_codes(table: pa.Table) -> NDArray[np.int64]:
    """Return the number of each news item's category; -1 for news without one ``[news]``."""
    found = pc.if_else(pc.equal(table["category"], ""), None, table["category"])
    codes = found.combine_chunks().dictionary_encode().indices
    return np.asarray(codes.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
