"""Turns a simulated world into the files of EB-NeRD, with the types of the published files.

Columns that the world does not have, such as read times, are null. Ids are the numbers in MIND's
ids. Named entities are the names of the vocabulary in the texts; sentiments are drawn at random.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.base import Rows
from newsrec.data.readers.ebnerd_files import ARTICLES, BEHAVIORS, FOLDERS, HISTORY
from newsrec.data.readers.mind import has_labels
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, SplitFiles, find_splits
from newsrec.data.readers.news import distinct
from newsrec.data.readers.news_file import read_news
from newsrec.data.readers.parquet_columns import as_bools
from newsrec.data.readers.to_parquet import impressions_table, write_blocks
from newsrec.data.readers.tsv import TsvFile
from newsrec.simulation.files import FIRST_DAY
from newsrec.simulation.presets import DAYS
from newsrec.simulation.vocabulary import entity_types

I8, I16, I32, F32 = pa.int8(), pa.int16(), pa.int32(), pa.float32()
TEXT, FLAG, MOMENT = pa.string(), pa.bool_(), pa.timestamp("us")
ARTICLE_TYPES = {
    "article_id": I32, "title": TEXT, "subtitle": TEXT, "last_modified_time": MOMENT,
    "premium": FLAG, "body": TEXT, "published_time": MOMENT, "image_ids": pa.list_(pa.int64()),
    "article_type": TEXT, "url": TEXT, "ner_clusters": pa.list_(TEXT),
    "entity_groups": pa.list_(TEXT), "topics": pa.list_(TEXT), "category": I16,
    "subcategory": pa.list_(I16), "category_str": TEXT, "total_inviews": I32,
    "total_pageviews": I32, "total_read_time": F32, "sentiment_score": F32, "sentiment_label": TEXT,
}  # fmt: skip
BEHAVIOR_TYPES = {
    "impression_id": pa.uint32(), "article_id": I32, "impression_time": MOMENT, "read_time": F32,
    "scroll_percentage": F32, "device_type": I8, "article_ids_inview": pa.list_(I32),
    "article_ids_clicked": pa.list_(I32), "user_id": pa.uint32(), "is_sso_user": FLAG,
    "gender": I8, "postcode": I8, "age": I8, "is_subscriber": FLAG, "session_id": pa.uint32(),
    "next_read_time": F32, "next_scroll_percentage": F32,
}  # fmt: skip
HISTORY_TYPES = {
    "user_id": pa.uint32(), "impression_time_fixed": pa.list_(MOMENT),
    "scroll_percentage_fixed": pa.list_(F32), "article_id_fixed": pa.list_(I32),
    "read_time_fixed": pa.list_(F32),
}  # fmt: skip
HIDDEN = ("article_id", "article_ids_clicked", "next_read_time", "next_scroll_percentage")
"""Columns that the published test set lacks."""
HISTORY_DAYS = 21
"""Days before a split over which the clicks of a history are spread evenly."""


def turn_into_ebnerd(folder: Path) -> None:
    """Replace MIND's files of each split by EB-NeRD's with the same content."""
    splits = find_splits(folder)
    _write_articles(splits.values(), folder / ARTICLES)
    for name, files in splits.items():
        target = folder / FOLDERS[name][0]
        target.mkdir(exist_ok=True)
        _write_behaviors(name, files, target)
        for file in files:
            file.path.unlink()
        if target.name != name:
            (folder / name).rmdir()


def _write_articles(splits: Iterable[SplitFiles], path: Path) -> None:
    news = distinct(pa.concat_tables([read_news(files.news.path) for files in splits]))
    codes = {
        name: news[name].combine_chunks().dictionary_encode().indices.cast(I16)
        for name in ("category", "subcategory")
    }
    one_each = pa.array(np.arange(len(news) + 1), pa.int32())
    columns = {
        "article_id": _numbers(news["news_id"].combine_chunks()),
        "title": news["title"],
        "subtitle": news["abstract"],
        "category": codes["category"],
        "subcategory": pa.ListArray.from_arrays(one_each, codes["subcategory"]),
        "category_str": news["category"],
    }
    columns |= _entities(news) | _sentiments(len(news))
    pq.write_table(_table(columns, len(news), ARTICLE_TYPES), path)


def _entities(news: pa.Table) -> dict[str, list[list[str]]]:
    """Return the named entities in the texts of each news item, and their types."""
    types = entity_types()
    # Longer names first, since a name may begin with another.
    names = re.compile("|".join(map(re.escape, sorted(types, key=len, reverse=True))))
    texts = pc.binary_join_element_wise(news["title"], news["abstract"], "\n").to_pylist()
    found = [[*dict.fromkeys(names.findall(text))] for text in texts]
    return {
        "ner_clusters": found,
        "entity_groups": [[types[name] for name in row] for row in found],
    }


def _sentiments(number: int) -> dict[str, Any]:
    """Return a random label of each news item, and its probability, at least 1/3."""
    rng = np.random.default_rng(0)
    labels = pa.array(["Negative", "Neutral", "Positive"]).take(rng.integers(0, 3, number))
    return {"sentiment_label": labels, "sentiment_score": rng.uniform(1 / 3, 1, number)}


def _write_behaviors(split: str, files: SplitFiles, target: Path) -> None:
    """Write a split's behaviors, and the history of each user when the user first appears."""
    labelled = has_labels(files.behaviors)
    types = dict(BEHAVIOR_TYPES)
    if split == "test":
        types = {n: t for n, t in types.items() if n not in HIDDEN or (labelled and "ids" in n)}
        types["is_beyond_accuracy"] = FLAG
    end = FIRST_DAY + np.timedelta64(DAYS[split][0], "D")
    seen: set[int] = set()
    with pq.ParquetWriter(target / HISTORY, pa.schema(HISTORY_TYPES)) as histories:

        def table_of(rows: Rows) -> pa.Table:
            table = impressions_table(rows, labelled)
            user = _numbers(table["user_id"].combine_chunks())
            new = []
            for row, number in enumerate(user.to_pylist()):
                if number not in seen:
                    seen.add(number)
                    new.append(row)
            histories.write_table(_history(user, table["history"].combine_chunks(), new, end))
            shown = table["candidates"].combine_chunks()
            offsets, ids = shown.offsets.to_numpy(), _numbers(shown.values)
            columns = {
                "impression_id": table["impression_id"],
                "impression_time": table["time"],
                "article_ids_inview": pa.ListArray.from_arrays(shown.offsets, ids),
                "user_id": user,
                "session_id": table["impression_id"],
            }
            columns |= {name: pa.repeat(False, len(table)) for name in types if types[name] == FLAG}
            if labelled:
                labels = table["labels"].combine_chunks().values
                kept = Ragged(ids.to_numpy(), offsets).select(as_bools(labels))
                columns["article_ids_clicked"] = _lists(kept)
            return _table(columns, len(table), types)

        write_blocks(TsvFile(files.behaviors, BEHAVIORS_COLUMNS), target / BEHAVIORS, table_of)


def _history(
    user: pa.Array, history: pa.ListArray, rows: list[int], end: np.datetime64
) -> pa.Table:
    """Return the histories of some rows, with clicks spread evenly over the days before ``end``."""
    lists = history.take(pa.array(rows, pa.int64()))
    news = Ragged(
        _numbers(lists.flatten()).to_numpy(), to_offsets(lists.value_lengths().to_numpy())
    )
    place = np.arange(len(news.values)) - np.repeat(news.offsets[:-1], news.lengths)
    share = 1 - place / np.repeat(news.lengths, news.lengths)
    before = (share * HISTORY_DAYS * 86400).astype("timedelta64[s]")
    nothing = pa.nulls(len(news.values), F32)
    columns = {
        "user_id": user.take(pa.array(rows, pa.int64())),
        "impression_time_fixed": _lists(news._replace(values=(end - before).astype("M8[us]"))),
        "scroll_percentage_fixed": _lists(news, nothing),
        "article_id_fixed": _lists(news),
        "read_time_fixed": _lists(news, nothing),
    }
    return _table(columns, len(rows), HISTORY_TYPES)


def _table(columns: dict[str, Any], num_rows: int, types: dict[str, pa.DataType]) -> pa.Table:
    """Return a table with all columns of ``types``; those that are not given are null."""
    schema = pa.schema(types)
    given = {n: columns[n] if n in columns else pa.nulls(num_rows, t) for n, t in types.items()}
    return pa.table(given).cast(schema)


def _lists(rows: Ragged, values: pa.Array | None = None) -> pa.ListArray:
    offsets = pa.array(rows.offsets, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(rows.values) if values is None else values)


def _numbers(ids: pa.Array) -> pa.Array:
    """Return the numbers in ids such as ``N12``."""
    return pc.utf8_slice_codeunits(ids, 1).cast(I32)
