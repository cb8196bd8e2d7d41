"""Opens a data folder as arrays, which are compiled once and then memory-mapped.

The news of all splits forms one catalogue. Row 0 is padding, row 1 the unknown news. Real news
starts at row 2, in the order of first appearance in train, dev and test. A split knows the news of
its own files and of the splits before it, so the arrays of train and dev do not depend on test.
Unknown news is left out of histories, and becomes row 1 as a candidate. Both cases are counted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.arrays import ARRAYS, read_table
from newsrec.data.parts import Engine
from newsrec.data.ragged import Ragged
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.source import SPLITS as SPLITS  # re-exported
from newsrec.data.store import find_or_compile
from newsrec.errors import DataError, MissingDataError, UserError
from newsrec.shipped import data_folder
from newsrec.store_path import StorePath


class Split(NamedTuple):
    """The impressions of one split, in the order of its file."""

    name: str
    """``train``, ``dev`` or ``test``, or a name that ``newsrec.data.splits`` gives."""
    impression_id: NDArray[np.int64]
    """Id of each impression in the file ``[impressions]``."""
    user: NDArray[np.int32]
    """Row of ``NewsData.users`` ``[impressions]``."""
    time: NDArray[np.datetime64]
    """When the impression was shown, in seconds ``[impressions]``."""
    history: NDArray[np.int32]
    """Row of ``histories`` for each impression ``[impressions]``."""
    histories: Ragged
    """Distinct histories of all splits: catalogue rows, oldest first, without unknown news."""
    candidates: Ragged
    """Catalogue rows of each impression's candidates, in the order of the file."""
    labels: NDArray[np.int8] | None
    """1 clicked, 0 skipped ``[candidates]``; None where the split has no labels."""
    counts: dict[str, int]
    """Counts that ``prepare`` reports: impressions, users, unknown ids and so on."""
    fingerprint: str
    """Hash of the split's two files and of how it was cut."""
    num_news: int
    """The split uses only the first ``num_news`` rows of the catalogue, which include padding and
    the unknown news."""

    @property
    def beyond_accuracy(self) -> NDArray[np.bool_]:
        """Which impressions are beyond-accuracy lists, which no metric counts ``[impressions]``."""
        if "beyond_accuracy" not in self.counts:
            return np.zeros(len(self.impression_id), dtype=bool)
        beyond: NDArray[np.bool_] = np.asarray(self.impression_id) == 0
        return beyond

    @property
    def days(self) -> tuple[np.datetime64, np.datetime64]:
        """First and last day of the split's impressions."""
        first, last = self.time.min(), self.time.max()
        return first.astype("datetime64[D]"), last.astype("datetime64[D]")

    @property
    def window(self) -> str:
        """The split's days as text: ``2019-11-09 to 2019-11-14``."""
        first, last = self.days
        return str(first) if first == last else f"{first} to {last}"


class NewsData(NamedTuple):
    """A data folder: one catalogue of news, and the splits that were found."""

    root: Path
    cache: Path
    """Folder of the arrays compiled from these files."""
    news: pa.Table
    """Real news: news_id, category, subcategory, title, abstract, and the columns of
    ``newsrec.data.readers.annotations`` that the files have. Row ``i`` is catalogue row
    ``i + 2``."""
    users: pa.Array
    """User ids of all splits."""
    splits: dict[str, Split]
    bad_lines: dict[str, list[str]]
    """For each file with bad lines, the first lines that were left out, as text."""
    cut_off: list[str]
    """Files whose last line has no line end."""
    arrays: dict[str, NDArray[Any]]
    """The compiled arrays, the rows of all splits joined."""
    train: str = "train"
    """The split that models and baselines learn from."""

    @property
    def num_news(self) -> int:
        """Rows of the catalogue, including padding and the unknown news."""
        return len(self.news) + FIRST_NEWS

    @property
    def submission(self) -> str:
        """Name of the text file that the format's leaderboard takes, in a zip of that name."""
        return reader_of(self.root).submission

    def split(self, name: str) -> Split:
        """Return a split by name; MissingDataError, which names the splits, if it is missing."""
        if name not in self.splits:
            raise MissingDataError(
                f"{self.root} has no split {name!r}, only {', '.join(self.splits)}. Put its "
                f"{reader_of(self.root).file_names} into {self.root / name}, or choose another "
                "split."
            )
        return self.splits[name]


def open_mind(
    root: str | Path, on_bad_line: str = "error", engine: Engine | None = None
) -> NewsData:
    """Open a data folder; compile its files first unless these contents were compiled before.

    The folder has train, dev and test, any subset, unpacked or zipped. ``on_bad_line`` error
    refuses a file with a line that cannot be read; drop leaves such lines out and counts them.
    ``engine``, from ``newsrec.data.parts.make_engine``, compiles in several processes; None
    compiles in this one.
    """
    if on_bad_line not in ("error", "drop"):
        raise UserError(f"data.on_bad_line is {on_bad_line!r}; choose error or drop.")
    root = data_folder(root)
    if engine is not None and isinstance(root, StorePath) and root.in_memory:
        raise UserError(
            f"--data.root {root} is in the memory of this process, which other processes cannot "
            "read. Leave out --engine and --jobs."
        )
    found = find_or_compile(root, on_bad_line, engine)
    try:
        return _load(root, *found)
    except Exception as error:  # a damaged header can raise anything: numpy evaluates it as Python
        raise DataError(
            f"{found[0]} is damaged ({error}). `python -m newsrec prepare --check --data.root "
            f"{root}` compiles it again."
        ) from error


def _load(root: Path, cache: Path, fingerprints: Mapping[str, str]) -> NewsData:
    meta: dict[str, Any] = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    splits = {}
    end = 0
    for name, counts in meta["counts"].items():
        begin, end = end, end + counts["impressions"]
        num_news = meta["num_news"][name] + FIRST_NEWS
        splits[name] = split_of(arrays, name, begin, end, counts, fingerprints[name], num_news)
    news = read_table(cache / "news.arrow")
    users = read_table(cache / "users.arrow")["user_id"].combine_chunks()
    return NewsData(root, cache, news, users, splits, meta["bad_lines"], meta["cut_off"], arrays)


def split_of(
    arrays: Mapping[str, NDArray[Any]],
    name: str,
    begin: int,
    end: int,
    counts: dict[str, int],
    fingerprint: str,
    num_news: int,
) -> Split:
    """Return impressions ``begin`` to ``end`` of the arrays as a split."""
    rows = slice(begin, end)
    offsets = arrays["candidate_offsets"]
    return Split(
        name=name,
        impression_id=arrays["impression_id"][rows],
        user=arrays["user"][rows],
        time=arrays["time"][rows],
        history=arrays["history"][rows],
        histories=Ragged(arrays["history_values"], arrays["history_offsets"]),
        candidates=Ragged(arrays["candidate_values"], offsets).between(begin, end),
        labels=arrays["labels"][offsets[begin] : offsets[end]] if "clicks" in counts else None,
        counts=counts,
        fingerprint=fingerprint,
        num_news=num_news,
    )
