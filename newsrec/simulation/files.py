"""The files of a simulated world: news, impressions and ``world.json``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged
from newsrec.data.readers.behaviors import TIME_FORMAT
from newsrec.data.readers.mind_files import find_splits
from newsrec.data.readers.to_parquet import write_parquet
from newsrec.metrics import METRICS, mind_metrics
from newsrec.simulation.impressions import Impressions

Advance = Callable[[int], None]
"""Called with the amount of work done since the last call."""

FIRST_DAY = np.datetime64("2019-11-09T00:00:00", "s")
WRITE_BLOCK = 1 << 14
"""Impressions or histories turned into text at a time, to bound memory."""


class SimulatedSplit(NamedTuple):
    """One split of a simulated world, before it is written."""

    name: str
    """``train``, ``dev`` or ``test``."""
    shown: Impressions
    """The impressions, in the order of the file."""
    user: NDArray[np.int64]
    """Row of each impression's user in ``histories`` ``[impressions]``."""
    histories: Ragged
    """News that each of the split's users clicked before, oldest first."""
    user_numbers: NDArray[np.int64]
    """The number in each user's id ``[users]``."""
    named: NDArray[np.int64]
    """News in the split's news.tsv, in order of their number: listed news that are shown or in a
    history."""


def write_split(
    folder: Path,
    split: SimulatedSplit,
    lines: list[str],
    news_numbers: NDArray[np.int64],
    labelled: bool,
    world: dict[str, Any],
    advance: Advance,
) -> None:
    """Write the two files of a split, and add its counts and its ceiling to ``world``."""
    name, shown = split.name, split.shown
    (folder / name).mkdir()
    text = "".join(lines[row] for row in split.named)
    (folder / name / "news.tsv").write_text(text, encoding="utf-8", newline="")
    _write_behaviors(folder / name / "behaviors.tsv", split, news_numbers, labelled, advance)
    world["splits"][name] = {
        "impressions": len(shown.user),
        "users": len(split.user_numbers),
        "news": len(split.named),
        "candidates": len(shown.candidates.values),
    }
    if name != "train":
        metrics = mind_metrics(shown.utility, shown.labels, shown.candidates.offsets)
        world["ceiling"][name] = {metric: round(metrics[metric], 6) for metric in METRICS}


def write_json(folder: Path, world: dict[str, Any]) -> None:
    """Write ``world.json``."""
    text = json.dumps(world, indent=1) + "\n"
    (folder / "world.json").write_text(text, encoding="utf-8", newline="")


def turn_into_parquet(folder: Path) -> None:
    """Replace the files of each split by Parquet with the same content."""
    for files in find_splits(folder).values():
        write_parquet(files, files.news.path.parent)
        for file in files:
            file.path.unlink()


def _write_behaviors(
    path: Path,
    split: SimulatedSplit,
    news_numbers: NDArray[np.int64],
    labelled: bool,
    advance: Advance,
) -> None:
    """Write one split's impressions."""
    ids = _prefixed("N", news_numbers)
    ends = ("-0", "-1") if labelled else ("", "")
    words = pa.concat_arrays([pc.binary_join_element_wise(ids, end, "") for end in ends])
    # A user's history is the same in all impressions of a split, so make its text once.
    texts = pa.chunked_array(
        [_join(ids, split.histories.take(rows)) for rows in _blocks(split.histories.num_rows)]
    ).combine_chunks()
    user_ids = _prefixed("U", split.user_numbers)
    shown = split.shown
    labels = Ragged(shown.labels, shown.candidates.offsets)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as file:
        for rows in _blocks(len(split.user)):
            user = pa.array(split.user[rows])
            candidates = shown.candidates.take(rows)
            word = candidates.values + len(ids) * labels.take(rows).values
            table = pa.table(
                {
                    "impression_id": pa.array(rows + 1),
                    "user_id": user_ids.take(user),
                    "time": _time_strings(shown.day[rows]),
                    "history": texts.take(user),
                    "candidates": _join(words, Ragged(word, candidates.offsets)),
                }
            )
            csv.write_csv(table, file, options)
            advance(len(rows))


def _blocks(num_rows: int) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, num_rows, WRITE_BLOCK):
        yield np.arange(begin, min(begin + WRITE_BLOCK, num_rows))


def _prefixed(letter: str, numbers: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.cast(pa.array(numbers), pa.string()), "")


def _join(words: pa.Array, rows: Ragged) -> pa.Array:
    """Return the words of each row, joined by spaces."""
    offsets = pa.array(rows.offsets.astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(rows.values))), " ")


def _time_strings(days: NDArray[np.float64]) -> pa.Array:
    """Return times as MIND writes them, without zero padding: ``11/9/2019 9:05:58 AM``."""
    seconds = FIRST_DAY + (days * 86400).astype("timedelta64[s]")
    padded = pc.strftime(pa.array(seconds), format=TIME_FORMAT)
    return pc.replace_substring_regex(padded, r"(^|[/ ])0", r"\1")
