"""Reads ``news.tsv`` and ``behaviors.tsv`` into arrays; ``newsrec.data.mind`` opens them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.tsv import BEHAVIORS_COLUMNS, NEWS_COLUMNS, bad_line, read_tsv

FORMAT = 1
"""Version of the compiled arrays; a change of their meaning counts it up."""

TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
TIME_DAY = r"^[0-9]{1,2}/(?P<day>[0-9]{1,2})/[0-9]{4} "


def compile_mind(folders: Mapping[str, Path], target: Path) -> None:
    """Read the splits' files and write their arrays into ``target``.

    Args:
        folders: Where each split's ``news.tsv`` and ``behaviors.tsv`` are.
        target: An empty folder.
    """
    news, disagreeing = _read_news({s: f / "news.tsv" for s, f in folders.items()})
    _write_table(target / "news.arrow", news)
    user_ids: list[pa.Array] = []
    counts: dict[str, dict[str, int]] = {}
    for split, folder in folders.items():
        arrays, users, counts[split] = _read_behaviors(folder / "behaviors.tsv", news["news_id"])
        user_ids.append(users)
        (target / split).mkdir()
        for name, array in arrays.items():
            np.save(target / split / f"{name}.npy", array)
    all_users = pc.unique(pa.concat_arrays(user_ids))
    for split, users in zip(folders, user_ids, strict=True):
        rows = pc.index_in(users, value_set=all_users).to_numpy()
        path = target / split / "user.npy"
        np.save(path, rows[np.load(path)].astype(np.int32))
    _write_table(target / "users.arrow", pa.table({"user_id": all_users}))
    meta = {"format": FORMAT, "counts": counts, "disagreeing_news": disagreeing}
    (target / "meta.json").write_text(json.dumps(meta, indent=1))


def _read_news(paths: Mapping[str, Path]) -> tuple[pa.Table, int]:
    """Return the catalogue's real stories, and how many ids a later file describes otherwise."""
    tables = []
    for path in paths.values():
        part = read_tsv(path, NEWS_COLUMNS, keep=NEWS_COLUMNS[:5])
        good = pc.match_substring_regex(part["news_id"], "^[^ ]+$")
        _require(good, path, part, "news_id", "empty or with a space")
        tables.append(part)
    table = pa.concat_tables(tables).combine_chunks()
    ids = table["news_id"].combine_chunks()
    unique = pc.unique(ids)
    first = np.full(len(unique), len(ids), dtype=np.int64)
    owner = pc.index_in(ids, value_set=unique).to_numpy()
    np.minimum.at(first, owner, np.arange(len(ids)))
    repeated = np.flatnonzero(first[owner] != np.arange(len(ids)))
    again, original = table.take(repeated), table.take(first[owner[repeated]])
    same = np.ones(len(repeated), dtype=bool)
    for name in ("category", "subcategory", "title", "abstract"):
        same &= pc.equal(again[name], original[name]).to_numpy()
    return table.take(first), int((~same).sum())


def _read_behaviors(
    path: Path, news_ids: pa.ChunkedArray
) -> tuple[dict[str, NDArray], pa.Array, dict[str, int]]:
    """Return one split's arrays, its distinct users and its counts."""
    table = read_tsv(path, BEHAVIORS_COLUMNS)
    ids = news_ids.combine_chunks()
    impression_id = _integers(path, table)
    time = _times(path, table)
    _require(pc.not_equal(table["user_id"], ""), path, table, "user_id", "empty")
    users = table["user_id"].combine_chunks().dictionary_encode()
    histories = table["history"].combine_chunks().dictionary_encode()
    history = histories.indices.to_numpy().astype(np.int32)
    history_news, unknown_history = _parse_histories(histories.dictionary, ids)
    candidates, labels, unknown = _parse_candidates(path, table["candidates"], ids)

    arrays = {
        "impression_id": impression_id,
        "user": users.indices.to_numpy().astype(np.int32),
        "time": time,
        "history": history,
        "history_values": history_news.values,
        "history_offsets": history_news.offsets,
        "candidate_values": candidates.values,
        "candidate_offsets": candidates.offsets,
    }
    lengths = history_news.lengths[history]
    counts = {
        "impressions": len(table),
        "users": len(users.dictionary),
        "history_news": int(lengths.sum()),
        "unknown_history_news": int(unknown_history[history].sum()),
        "empty_histories": int((lengths == 0).sum()),
        "candidates": len(candidates.values),
        "unknown_candidates": unknown,
    }
    if labels is not None:
        arrays["labels"] = labels
        counts["clicks"] = int(labels.sum())
    return arrays, users.dictionary, counts


def _parse_histories(texts: pa.Array, ids: pa.Array) -> tuple[Ragged, NDArray[np.int64]]:
    """Return known stories of each distinct history, and how many unknown ids each had."""
    parts = pc.split_pattern(texts, " ")
    words = parts.flatten()
    rows = pc.index_in(words, value_set=ids)
    known = rows.is_valid().to_numpy(zero_copy_only=False)
    unknown = ~known & pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    values = rows.fill_null(0).to_numpy() + np.int32(FIRST_NEWS)
    everything = Ragged(values, _list_offsets(parts))
    num_unknown = np.diff(to_offsets(unknown)[everything.offsets])
    return everything.select(known), num_unknown


def _parse_candidates(
    path: Path, column: pa.ChunkedArray, ids: pa.Array
) -> tuple[Ragged, NDArray[np.int8] | None, int]:
    """Return candidates, labels (None if the file has none) and the number of unknown stories."""
    # One lookup gives story and label at once: each id with a skip, with a click, and bare.
    known = pa.concat_arrays(
        [pc.binary_join_element_wise(ids, end, "") for end in ("-0", "-1")] + [ids]
    )
    values, labels, lengths = [], [], []
    for chunk in column.chunks:
        parts = pc.split_pattern(chunk, " ")
        words = parts.flatten()
        found = pc.index_in(words, value_set=known)
        missing = np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))
        label, row = np.divmod(found.fill_null(0).to_numpy(), np.int32(max(len(ids), 1)))
        row += FIRST_NEWS
        if len(missing):
            strange = words.take(pa.array(missing))
            row[missing] = UNKNOWN_NEWS
            clicked, skipped = (
                pc.ends_with(strange, end).to_numpy(zero_copy_only=False) for end in ("-1", "-0")
            )
            label[missing] = np.where(clicked, 1, np.where(skipped, 0, 2))
            row[missing[pc.equal(strange, "").to_numpy(zero_copy_only=False)]] = -1
        values.append(row)
        labels.append(label.astype(np.int8))
        lengths.append(np.diff(_list_offsets(parts)))
    candidates = Ragged(np.concatenate(values), to_offsets(np.concatenate(lengths)))
    label = np.concatenate(labels)

    empty = np.flatnonzero(candidates.values == -1)
    if len(empty):
        line = _owner(candidates, empty[0])
        raise bad_line(path, line + 1, "candidates", column[line].as_py(), "an empty candidate id")
    bare = np.flatnonzero(label == 2)
    if len(bare) and len(bare) < len(label):
        line = _owner(candidates, bare[0])
        word = column[line].as_py().split(" ")[bare[0] - candidates.offsets[line]]
        raise bad_line(
            path, line + 1, "candidates", word, "no label (-0 or -1), while others in the file have"
        )
    unknown = int((candidates.values == UNKNOWN_NEWS).sum())
    return candidates, None if len(bare) else label, unknown


def _integers(path: Path, table: pa.Table) -> NDArray[np.int64]:
    good = pc.match_substring_regex(table["impression_id"], r"^[0-9]{1,18}$")
    _require(good, path, table, "impression_id", "not a whole number")
    return pc.cast(table["impression_id"], pa.int64()).to_numpy()


def _times(path: Path, table: pa.Table) -> NDArray[np.datetime64]:
    texts = table["time"]
    times = pc.strptime(texts, format=TIME_FORMAT, unit="s", error_is_null=True)
    # strptime turns 02/30 into 2 March and takes the year 19, so the day must be the one written.
    day = pc.struct_field(pc.extract_regex(texts, TIME_DAY), "day")
    good = pc.fill_null(pc.equal(pc.cast(day, pa.int64()), pc.day(times)), False)
    _require(good, path, table, "time", "not a time like 11/11/2019 9:05:58 AM")
    return times.to_numpy().astype("datetime64[s]")


def _require(good: pa.ChunkedArray, path: Path, table: pa.Table, column: str, problem: str) -> None:
    """Raise for the first line where ``good`` is False."""
    if not pc.all(good).as_py():
        line = pc.index(good, False).as_py()
        raise bad_line(path, line + 1, column, table[column][line].as_py(), problem)


def _list_offsets(lists: pa.ListArray) -> NDArray[np.int64]:
    """Offsets into ``lists.flatten()``."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def _owner(rows: Ragged, position: int) -> int:
    return int(np.searchsorted(rows.offsets, position, side="right")) - 1


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
