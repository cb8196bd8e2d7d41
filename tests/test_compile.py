"""Bad input: every line is read or reported, whatever the file has been through."""

import os
import re
import resource
import time
from datetime import datetime
from unittest.mock import patch

import numpy as np
import pytest
from conftest import news_row, tiny_behaviors, tiny_news, write_mind
from forks import started
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data.dataset import open_mind
from newsrec.data.npy import NpyWriter
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers import mind_files, tsv
from newsrec.data.readers.behaviors import Parser
from newsrec.data.tables import hash_rows
from newsrec.errors import UserError

TIME = "11/11/2019 9:05:58 AM"
NEWS = [news_row("N1", *"abcd"), news_row("N2", *"efgh"), news_row("N3", *"ijkl")]
GOOD = [
    ["1", "U1", TIME, "N1 N2", "N1-0 N2-1"],
    ["2", "U2", "1/2/2019 12:05:58 PM", "", "N404-0 N3-1"],
    ["3", "U1", TIME, "N1 N404 N2", "N3-1 N1-0 N2-1"],
]
BOM = b"\xef\xbb\xbf"


def contents(data, name="train"):
    """Return a split's impressions, with ids in place of rows."""
    split = data.split(name)
    ids = ["", "?", *data.news["news_id"].to_pylist()]
    labels = split.labels if split.labels is not None else np.full(len(split.candidates.values), 9)
    labels = Ragged(labels, split.candidates.offsets)

    def row(ragged, i):
        return ragged.values[ragged.offsets[i] : ragged.offsets[i + 1]].tolist()

    return [
        (
            int(split.impression_id[i]),
            data.users[int(split.user[i])].as_py(),
            split.time[i].item(),
            [ids[n] for n in row(split.histories, split.history[i])],
            [ids[n] for n in row(split.candidates, i)],
            row(labels, i),
        )
        for i in range(len(split.history))
    ]


def write(root, behaviors, news=NEWS):
    return write_mind(root, {"train": news}, {"train": behaviors})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The contents of 40 good lines."""
    rows = [list(GOOD[i % 3]) for i in range(40)]
    return contents(open_mind(write(tmp_path_factory.mktemp("good"), rows)))


@pytest.mark.parametrize(
    ("number", "column", "text", "problem"),
    [
        (0, "impression_id", "seven", "not a whole number"),
        (1, "user_id", "", "empty"),
        (2, "time", "11/31/2019 9:05:58 AM", "not a time like 11/11/2019 9:05:58 AM"),
        (2, "time", "11/11/2019 9:05:58AM", "not a time"),
        (2, "time", "11/11/2019 9:05:60 AM", "not a time"),
        (4, "candidates", "N1-0 N2-2", "a label other than 0 and 1: 'N2-2'"),
        (4, "candidates", "N1-0 N2-", "a label other than 0 and 1: 'N2-'"),
        (4, "candidates", "N1-0 N404-2", "no label (-0 or -1), while most lines have: 'N404-2'"),
        (4, "candidates", "N1 N2", "no label (-0 or -1), while most lines have: 'N1'"),
        (4, "candidates", "N1-0  N2-1", "an empty candidate id: ''"),
        (4, "candidates", "", "an empty candidate id: ''"),
        (4, "candidates", "N1-0 -1", "an empty candidate id: '-1'"),
    ],
)
@pytest.mark.parametrize("line", [2, 40])
def test_a_field_that_cannot_be_read_stops_or_is_left_out(
    good, tmp_path, monkeypatch, number, column, text, problem, line
):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 256)
    rows = [list(GOOD[i % 3]) for i in range(40)]
    rows[line - 1][number] = text
    root = write(tmp_path / "bad", rows)
    path = root / "train" / "behaviors.tsv"
    with pytest.raises(UserError) as error:
        open_mind(root)
    assert f"{path}, line {line}, column {column}: {problem}" in str(error.value)
    data = open_mind(root, "drop")
    assert contents(data) == good[: line - 1] + good[line:]
    assert data.split("train").counts["dropped_lines"] == 1
    (shown,) = data.bad_lines[str(path)]
    assert shown.startswith(f"line {line}, column {column}: {problem}")
    with pytest.raises(UserError):  # what was compiled with lines left out serves no other
        open_mind(root)


def test_skipped_lines_are_counted_and_the_first_ten_listed(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 256)
    rows = [list(GOOD[i % 3]) for i in range(60)]
    for i in range(10, 50):
        rows[i] = [rows[i][0], "", *rows[i][2:]] if i % 2 else rows[i][:3]
    data = open_mind(write(tmp_path, rows), "drop")
    assert data.split("train").counts["dropped_lines"] == 40
    assert data.split("train").counts["impressions"] == 20
    (lines,) = data.bad_lines.values()
    assert [int(re.search(r"line (\d+)", line)[1]) for line in lines] == list(range(11, 21))
    assert "lines dropped: 40" in caplog.text
    assert "and 30 more" in caplog.text


def test_with_drop_a_clean_folder_needs_no_arrays_of_its_own(tmp_path):
    root = write(tmp_path, GOOD)
    assert open_mind(root, "drop").cache == open_mind(root).cache


def test_an_option_other_than_error_and_drop_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.on_bad_line is 'skip'; choose error or drop"):
        open_mind(write(tmp_path, GOOD), "skip")


def test_a_file_without_a_readable_line_is_refused(tmp_path):
    root = write(tmp_path, [["x", *row[1:]] for row in GOOD])
    with pytest.raises(UserError, match=r"none of its lines can be read, line 1"):
        open_mind(root, "drop")


def test_a_news_item_told_twice_is_one_news_item_and_told_otherwise_is_a_bad_line(tmp_path):
    root = write(tmp_path, GOOD, [*NEWS, NEWS[1]])
    assert len(open_mind(root).news) == 3
    other = [*NEWS[1][:3], "another title", *NEWS[1][4:]]
    root = write(tmp_path, GOOD, [*NEWS, other])
    with pytest.raises(UserError, match=r"news\.tsv, line 4, column news_id: an earlier line has"):
        open_mind(root)
    data = open_mind(root, "drop")
    assert data.news["title"].to_pylist() == [row[3] for row in NEWS]
    assert data.split("train").counts["dropped_news_lines"] == 1


def test_a_news_item_that_splits_tell_differently_is_kept_as_first_told_and_said(tmp_path, caplog):
    other = [*NEWS[1][:3], "another title", *NEWS[1][4:]]
    root = write_mind(tmp_path, {"train": NEWS, "dev": [other]}, {"train": GOOD, "dev": GOOD})
    assert open_mind(root).news["title"].to_pylist() == [row[3] for row in NEWS]
    assert "1 news item has another text in a later split" in caplog.text


def test_a_file_that_was_cut_off_is_reported(tmp_path, caplog):
    root = write(tmp_path, GOOD)
    path = root / "train" / "behaviors.tsv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # N2-1 without its label
    with pytest.raises(UserError, match=r"line 3, column candidates: .*: 'N2'"):
        open_mind(root)
    path.write_bytes(whole[:-6])  # a shorter list, as good as any
    assert len(contents(open_mind(root))) == 3
    assert f"{path}: its last line has no line end" in caplog.text


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    expected = contents(open_mind(write(tmp_path, GOOD)))
    write_mind(tmp_path, {"train": NEWS}, {"train": GOOD}, line_end="\r\n")
    for path in tmp_path.glob("train/*.tsv"):
        path.write_bytes(BOM + path.read_bytes())
    data = open_mind(tmp_path)
    assert contents(data) == expected
    assert data.news["news_id"].to_pylist() == ["N1", "N2", "N3"]


def lines_of(content):
    """Return each line with its number, None in place of one that is no text."""
    content = content.removeprefix(BOM)
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        whole = not (b"\r" in line or b"\0" in line or line.startswith(BOM))
        try:
            yield number, line.decode() if whole else None
        except UnicodeDecodeError:
            yield number, None


def read_slowly(content):
    """Return the good lines of a behaviors.tsv and the numbers of the bad ones."""
    good, bad = [], []
    known = {"N1", "N2", "N3"}
    with_labels = without = 0
    for line in content.removesuffix(b"\n").split(b"\n")[:100]:
        fields = line.rstrip(b"\r").split(b"\t")
        if len(fields) == 5:
            labels = [word[-2:] in (b"-0", b"-1") for word in fields[4].split(b" ")]
            with_labels += all(labels)
            without += not any(labels)
    labelled = with_labels > 0 and with_labels >= without
    for number, line in lines_of(content):
        try:
            assert line is not None
            impression, user, shown, history, candidates = line.split("\t")
            assert re.fullmatch("[0-9]{1,18}", impression)
            assert user
            assert re.fullmatch(r"[0-9/]+ [0-9]{1,2}:[0-9]{2}:[0-9]{2} [AP]M", shown)
            assert re.fullmatch(r"[0-9]+/[0-9]+/[12][0-9]{3} .*", shown)
            time = datetime.strptime(shown, "%m/%d/%Y %I:%M:%S %p")
            ids, labels = [], []
            for word in candidates.split(" "):
                news_id, _, label = word.rpartition("-")
                if labelled:
                    assert news_id
                    assert label in ("0", "1")
                else:
                    assert word
                    assert not word.endswith(("-0", "-1"))
                    assert news_id not in known  # a label, but neither 0 nor 1
                    news_id, label = word, 9
                ids.append(news_id if news_id in known else "?")
                labels.append(int(label))
        except (AssertionError, ValueError):
            bad.append(number)
        else:
            clicked = [n for n in history.split(" ") if n in known]
            good.append((int(impression), user, time, clicked, ids, labels))
    return good, bad


def read_news_slowly(content):
    """Return the good news items of a news.tsv and the numbers of the bad lines."""
    news, bad = {}, []
    for number, line in lines_of(content):
        fields = [] if line is None else line.split("\t")
        good = len(fields) == 8 and fields[0] and " " not in fields[0]
        good = good and fields[0].lower() not in ("news_id", "newsid")
        if not good or news.setdefault(fields[0], fields[1:5]) != fields[1:5]:
            bad.append(number)
    return news, bad


@st.composite
def mutations(draw, rows, most):
    """Return a valid file after a few accidents."""
    number = draw(st.integers(1, most))
    content = "".join("\t".join(rows[i % len(rows)]) + "\n" for i in range(number))
    data = bytearray(content.encode())
    piece = st.sampled_from(
        [b"\t", b"\n", b"\r", b"\r\n", b"\0", b" ", b"-", b"N1", b"0", b"1", b"9", b"\xff", BOM]
        + [word.encode() for word in ("é", '"', "/", ":")]
    )
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "delete", "replace", "cut", "repeat"]))
        end = min(at + draw(st.integers(1, 60 if kind in ("delete", "repeat") else 3)), len(data))
        if kind == "insert":
            data[at:at] = draw(piece)
        elif kind == "delete":
            del data[at:end]
        elif kind == "replace":
            data[at:end] = draw(piece)
        elif kind == "cut":
            del data[at:]
        else:
            data[at:at] = data[at:end]
    return bytes(data)


@pytest.mark.slow
@given(mutations(GOOD, 12), st.sampled_from([64, 300, 1 << 20]))
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_refused_or_read_as_a_loop_reads_it(tmp_path_factory, content, block):
    root = tmp_path_factory.mktemp("mind")
    path = write(root, GOOD) / "train" / "behaviors.tsv"
    path.write_bytes(content)
    good, bad = read_slowly(content)
    with patch.object(tsv, "BLOCK_BYTES", block):
        if not content.removeprefix(BOM):
            refused(root, f"{path} is empty")
            return
        if bad:
            refused(root, f"{path}, line {bad[0]}, ")
        else:
            assert contents(open_mind(root)) == good
        if not good:
            refused(root, "none of its lines can be read", "drop")
            return
        data = open_mind(root, "drop")
        assert contents(data) == good
        assert data.split("train").counts["dropped_lines"] == len(bad)


@pytest.mark.slow
@given(mutations(NEWS, 4), st.sampled_from([64, 1 << 20]))
@settings(max_examples=200, deadline=None)
def test_damaged_news_are_refused_or_read_as_a_loop_reads_them(tmp_path_factory, content, block):
    root = tmp_path_factory.mktemp("mind")
    path = write(root, GOOD) / "train" / "news.tsv"
    path.write_bytes(content)
    news, bad = read_news_slowly(content)
    with patch.object(tsv, "BLOCK_BYTES", block):
        if not content.removeprefix(BOM):
            refused(root, f"{path} is empty")
            return
        if bad:
            refused(root, f"{path}, line {bad[0]}, ")
        if not news:
            refused(root, "none of its lines can be read", "drop")
            return
        data = open_mind(root, "drop")
        assert data.split("train").counts["dropped_news_lines"] == len(bad)
        found = {
            news_id: list(fields)
            for news_id, *fields in zip(*data.news.to_pydict().values(), strict=True)
        }
        assert found == news


def refused(root, message, on_bad_line="error"):
    with pytest.raises(UserError) as error:
        open_mind(root, on_bad_line)
    assert message in str(error.value)


@pytest.mark.parametrize("damaged", ["N1 N2", "N1-2 N2-1", "N1 N2-1", ""])
def test_a_damaged_first_line_does_not_speak_for_the_others(tmp_path, damaged):
    rows = [GOOD[i % 3] for i in range(9)]
    expected = contents(open_mind(write(tmp_path / "good", rows)))
    rows[0] = [*rows[0][:4], damaged]
    root = write(tmp_path / "bad", rows)
    refused(root, "line 1, column candidates: ")
    assert contents(open_mind(root, "drop")) == expected[1:]


@pytest.mark.parametrize("name", ["news.tsv", "behaviors.tsv"])
def test_a_header_is_a_bad_line(tmp_path, name):
    expected = contents(open_mind(write(tmp_path / "good", GOOD)))
    path = write(tmp_path / "bad", GOOD) / "train" / name
    columns = mind_files.NEWS_COLUMNS if name == "news.tsv" else mind_files.BEHAVIORS_COLUMNS
    path.write_bytes("\t".join(columns).encode() + b"\n" + path.read_bytes())
    refused(tmp_path / "bad", f"{path}, line 1, column {columns[0]}: ")
    data = open_mind(tmp_path / "bad", "drop")
    assert contents(data) == expected
    assert len(data.news) == 3


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    root = write(tmp_path, [GOOD[i % 3] for i in range(3000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # of any file
    try:
        with pytest.raises(UserError, match="nothing was kept"):
            open_mind(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in root.glob(".newsrec/*")) == ["lock"]
    assert len(contents(open_mind(root))) == 3000


def compile_slowly(_, root):
    tsv.BLOCK_BYTES = 2000
    rows = tsv.TsvFile._rows

    def slow(self, line, block):
        time.sleep(0.1)
        return rows(self, line, block)

    tsv.TsvFile._rows = slow
    open_mind(root)


def test_a_compilation_that_is_killed_leaves_nothing_that_is_believed(tmp_path):
    root = write(tmp_path, [GOOD[i % 3] for i in range(3000)])
    process, _ = started(compile_slowly, root)
    aside = root / ".newsrec"
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 1000 for p in aside.glob(".building-*/candidate_values.npy")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert list(aside.glob(".building-*"))
    assert not list(aside.glob("mind-*"))
    assert len(contents(open_mind(root))) == 3000
    assert not list(aside.glob(".building-*"))


def test_a_file_that_changes_while_it_is_read_is_refused(mind_dir, monkeypatch):
    path = mind_dir / "dev" / "behaviors.tsv"
    parse = Parser.parse

    def parse_and_touch(self, rows):
        os.utime(path, (1, 1))
        return parse(self, rows)

    monkeypatch.setattr(Parser, "parse", parse_and_touch)
    with pytest.raises(UserError, match="changed while it was read"):
        open_mind(mind_dir)
    assert not list(mind_dir.glob(".newsrec/mind-*"))


def test_block_size_changes_no_byte_of_the_arrays(tmp_path, monkeypatch):
    found = []
    for block in (200, 1000, 1 << 20):
        monkeypatch.setattr(tsv, "BLOCK_BYTES", block)
        root = write_mind(tmp_path / str(block), tiny_news(), tiny_behaviors())
        cache = open_mind(root).cache
        found.append({p.name: p.read_bytes() for p in cache.iterdir() if p.suffix == ".npy"})
    assert found[0] == found[1] == found[2]


rows = st.lists(st.lists(st.integers(2, 5), max_size=4), min_size=1, max_size=8)


@given(rows)
@settings(max_examples=200, deadline=None)
def test_rows_have_the_same_hash_only_if_they_are_equal(lists):
    flat = np.array([value for row in lists for value in row], dtype=np.int32)
    hashes = hash_rows(Ragged(flat, to_offsets(np.array([len(row) for row in lists]))))
    for i, row in enumerate(lists):
        for j, other in enumerate(lists):
            assert (hashes[i] == hashes[j]) == (row == other)


@given(st.lists(st.lists(st.integers(-9, 9), max_size=5), max_size=6))
def test_a_growing_array_is_read_back_by_numpy(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "grown.npy"
    writer = NpyWriter(path, np.int32)
    for part in parts:
        writer.write(np.array(part))
    writer.close()
    assert np.load(path).tolist() == [value for part in parts for value in part]
    assert np.load(path, mmap_mode="r" if any(parts) else None).dtype == np.int32
