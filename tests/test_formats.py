import shutil
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pytest

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.dataset import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers import formats
from newsrec.data.readers.base import NEWS_TABLE, Impressions, Rows
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, NEWS_COLUMNS, find_splits
from newsrec.data.readers.source import SPLITS, SourceFile, hash_source
from newsrec.errors import UserError


class ArrowReader:
    """A format in a few lines: two Arrow files a split, with lists of ids and of clicks."""

    name = "arrow"
    version = 0
    file_names = "news.arrow and impressions.arrow"

    def recognizes(self, root):
        return any(root.glob("*/news.arrow"))

    def find_splits(self, root):
        names = ("news.arrow", "impressions.arrow")
        found = [split for split in SPLITS if (root / split).is_dir()]
        return {split: tuple(SourceFile(root / split / name) for name in names) for split in found}

    def news(self, files, on_read):
        table = feather.read_table(files[0].path).select(NEWS_TABLE)
        return _read(files[0]), iter([Rows(table, np.arange(len(table)), [], 0)])

    def impressions(self, files, ids, on_read):
        return _read(files[1]), (
            self._block(pa.Table.from_batches([batch]), ids)
            for batch in feather.read_table(files[1].path).to_batches(10)
        )

    def divide(self, files, most_bytes):
        return f"{files[1].path.name} is small"

    def _block(self, table, ids):
        rows = Rows(table, np.arange(len(table)), [], 0)
        history = rows.column("history")
        offsets = to_offsets(pc.list_value_length(history).to_numpy())
        found = pc.index_in(history.flatten(), ids)
        known = found.is_valid().to_numpy(zero_copy_only=False)
        values = found.fill_null(0).to_numpy() + FIRST_NEWS
        shown = rows.column("candidates")
        candidates = pc.index_in(shown.flatten(), ids)
        candidates = pc.add(candidates, FIRST_NEWS).fill_null(UNKNOWN_NEWS).to_numpy()
        labels = (
            rows.column("clicks").flatten().to_numpy() if "clicks" in table.schema.names else None
        )
        return Impressions(
            rows,
            rows.column("impression_id").to_numpy(),
            rows.column("time").to_numpy(),
            rows.column("user_id").dictionary_encode(),
            Ragged(values, offsets).select(known),
            int((~known).sum()),
            Ragged(candidates, to_offsets(pc.list_value_length(shown).to_numpy())),
            labels,
        )


def _read(file):
    hashes = {file: hash_source(file)}
    return SimpleNamespace(file=file, cut_off=False, unit="row", advice="", hashes=hashes)


def as_arrow(mind_dir, root):
    """Write a MIND folder's splits as ``ArrowReader`` reads them."""
    for split, (news, behaviors) in find_splits(mind_dir).items():
        (root / split).mkdir(parents=True)
        lines = [line.split("\t") for line in news.path.read_text().splitlines()]
        columns = dict(zip(NEWS_COLUMNS, zip(*lines, strict=True), strict=True))
        news_table = pa.table({n: columns[n] for n in NEWS_TABLE})
        feather.write_feather(news_table, root / split / "news.arrow")
        lines = [line.split("\t") for line in behaviors.path.read_text().splitlines()]
        columns = dict(zip(BEHAVIORS_COLUMNS, zip(*lines, strict=True), strict=True))
        shown = [text.split(" ") for text in columns["candidates"]]
        table = {
            "impression_id": [int(number) for number in columns["impression_id"]],
            "user_id": columns["user_id"],
            "time": np.array(
                [datetime.strptime(text, "%m/%d/%Y %I:%M:%S %p") for text in columns["time"]],
                dtype="datetime64[s]",
            ),
            "history": [text.split() for text in columns["history"]],
            "candidates": [[word.partition("-")[0] for word in row] for row in shown],
        }
        if "-" in shown[0][0]:
            clicks = [[np.int8(word.partition("-")[2]) for word in row] for row in shown]
            table["clicks"] = pa.array(clicks, pa.list_(pa.int8()))
        feather.write_feather(pa.table(table), root / split / "impressions.arrow")
    return root


def test_a_folder_that_no_other_format_claims_is_minds(tmp_path):
    assert reader_of(tmp_path).name == "mind"


def test_another_format_is_one_class_and_one_line(mind_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "READERS", (ArrowReader(), *formats.READERS))
    expected = open_mind(mind_dir)
    found = open_mind(as_arrow(mind_dir, tmp_path / "arrow"))
    assert found.cache.name.startswith("arrow-")
    assert found.cache.name != expected.cache.name
    assert found.news.equals(expected.news)
    assert found.users.equals(expected.users)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    for name, split in expected.splits.items():
        assert found.splits[name].counts == split.counts
    shutil.rmtree(found.cache)
    with pytest.raises(UserError, match=r"--jobs have no use here: impressions\.arrow is small\."):
        open_mind(tmp_path / "arrow", engine=lambda job: pytest.fail("started"))
