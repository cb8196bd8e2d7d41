import random

import pytest
from conftest import news_row

from newsrec.data.readers import news, tsv
from newsrec.data.readers.mind import MindReader
from newsrec.data.readers.news import merge_news
from newsrec.data.readers.source import SourceFile


@pytest.mark.parametrize("seed", range(5))
def test_repeats_left_out_as_they_come_change_neither_rows_nor_bad_lines(
    tmp_path, monkeypatch, seed
):
    rng = random.Random(seed)
    rows = [
        news_row(f"N{rng.randrange(60)}", "news", "", rng.choice(["a title"] * 9 + ["b"]), "")
        for _ in range(400)
    ]
    path = tmp_path / "news.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    first, bad = {}, 0
    for line, row in enumerate(rows, start=1):
        bad += first.setdefault(row[0], (line, row))[1] != row
    for block_bytes, merged_rows in ((1 << 20, 1 << 20), (300, 1), (700, 50)):
        monkeypatch.setattr(tsv, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(news, "MERGED_ROWS", merged_rows)
        found = merge_news(MindReader().news((SourceFile(path),))[1])
        assert found.lines.tolist() == [line for line, _ in first.values()]
        assert found.column("title").to_pylist() == [row[3] for _, row in first.values()]
        assert found.num_bad == bad
        assert min(b.line for b in found.bad) == min(
            line for line, row in enumerate(rows, start=1) if first[row[0]][1] != row
        )
