import zipfile
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data.readers import tsv
from newsrec.data.readers.base import BadLine
from newsrec.data.readers.source import SourceFile
from newsrec.data.readers.tsv import BOM, TsvFile
from newsrec.errors import UserError

COLUMNS = ("id", "title", "url")


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "news.tsv"
        path.write_bytes(content)
        return path

    return write


def read(path, keep=None):
    """Return a file's rows as tuples, their line numbers and the bad lines."""
    reader = TsvFile(SourceFile(path), COLUMNS, keep)
    rows, lines, bad = [], [], []
    for block in reader.map(lambda block: block):
        assert block.table.column_names == list(keep or COLUMNS)
        assert set(block.table.schema.types) == {pa.string()}
        rows += [tuple(row.values()) for row in block.table.to_pylist()]
        lines += block.lines.tolist()
        bad += block.bad
        assert block.num_bad == len(block.bad) or len(block.bad) == tsv.LISTED
    return rows, lines, bad


def rows_of(path):
    """Return the rows of a file without bad lines."""
    rows, lines, bad = read(path)
    assert not bad
    assert lines == list(range(1, len(rows) + 1))
    return rows


def test_nothing_is_quoted_escaped_stripped_or_taken_for_missing(file):
    rows = [
        ("1", '"Slow" trains', ""),
        ("2", '"an open quote', "NaN"),
        ("3", "  spaces, commas\\n ", "NULL"),
        ("4", "café — naïve\u2028\x85 \x0b", "null"),
        ("", "", ""),
    ]
    path = file("".join("\t".join(row) + "\n" for row in rows).encode())
    assert rows_of(path) == rows


@pytest.mark.parametrize("content", [b"1\ta\tb\n2\tc\td\n", b"1\ta\tb\n2\tc\td"])
def test_the_last_line_end_may_be_missing(file, content):
    assert rows_of(file(content)) == [("1", "a", "b"), ("2", "c", "d")]


def test_windows_line_ends_are_not_part_of_the_last_column(file):
    assert rows_of(file(b"1\ta\tb\r\n2\tc\t\r\n")) == [
        ("1", "a", "b"),
        ("2", "c", ""),
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column(file):
    assert rows_of(file(b"\xef\xbb\xbf1\ta\tb\n")) == [("1", "a", "b")]


def test_only_the_wanted_columns_are_returned(file):
    assert read(file(b"1\ta\tb\n"), keep=("id", "url"))[0] == [("1", "b")]


def test_rows_keep_the_order_of_lines_over_many_blocks(file, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    content = "".join(f"{i}\ttitle {i}\t\n" for i in range(500)).encode()
    assert [row[0] for row in rows_of(file(content))] == [str(i) for i in range(500)]


@pytest.mark.parametrize("line", [1, 2, 7, 399, 400])
@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        (b"one\ttwo", None, "2 columns instead of 3"),
        (b"one\ttwo\tthree\tfour", None, "4 columns instead of 3"),
        (b"one\tt\xff\xfewo\tthree", "title", "not UTF-8 at byte 6"),
        (b"one\ttwo\t\0\0\0\0", "url", "NUL bytes"),
        (b"one\ttw\ro\tthree", "title", "a carriage return inside the line"),
        (BOM + BOM + b"one\ttwo\tthree", "id", "a byte order mark inside the file"),
        (b"1\t2\t3\t\0", None, "NUL bytes"),
    ],
)
def test_a_bad_line_is_left_out_and_named(file, monkeypatch, line, text, column, problem):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    lines = [f"{i}\ttitle {i}\t".encode() for i in range(400)]
    lines[line - 1] = text
    rows, numbers, bad = read(file(b"\n".join(lines) + b"\n"))
    assert numbers == [i for i in range(1, 401) if i != line]
    assert [row[0] for row in rows] == [str(i - 1) for i in numbers]
    assert [(b.line, b.column, b.problem) for b in bad] == [(line, column, problem)]


def test_the_text_shown_is_that_around_the_problem(file):
    _, _, bad = read(file(b"1\t" + b"good " * 100 + b"b\0d " + b"more " * 100 + b"\tx\n"))
    assert "good b\\x00d more" in str(bad[0])
    assert len(str(bad[0])) < 130


def test_a_line_may_be_longer_than_a_block(file, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    rows = [("1", "a", "b"), ("2", "long " * 99, "b"), *[("3", "a", "b")] * 20]
    assert rows_of(file("".join("\t".join(row) + "\n" for row in rows).encode())) == rows


def test_a_file_without_lines_is_refused_before_it_fills_the_memory(file, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    monkeypatch.setattr(tsv, "LONGEST_LINE", 1000)
    with pytest.raises(UserError, match=r"news items\.tsv cannot be read: line 2 is over"):
        read(file(b"1\ta\tb\n" + b"x" * 9999))


def test_a_blank_line_is_a_row_of_empty_fields_for_the_caller_to_refuse(file):
    rows = [("1", "a", "b"), ("", "", ""), ("2", "c", "d"), ("", "", "")]
    assert rows_of(file(b"1\ta\tb\n\n2\tc\td\n\n")) == rows
    assert rows_of(file(b"\n")) == [("", "", "")]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(file, content):
    with pytest.raises(UserError, match=r"news items\.tsv is empty"):
        read(file(content))


@pytest.mark.parametrize(("content", "cut_off"), [(b"1\ta\tb\n", False), (b"1\ta\tb", True)])
def test_a_last_line_without_its_end_is_noticed(file, content, cut_off):
    reader = TsvFile(SourceFile(file(content)), COLUMNS)
    assert sum(block.num_rows for block in reader.map(lambda block: block)) == 1
    assert reader.cut_off == cut_off


def test_bytes_are_counted_and_hashed_as_they_are_read(file, monkeypatch):
    import hashlib

    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    content = b"\xef\xbb\xbf" + b"1\ta\tb\r\n" * 99 + b"bad\0"
    read_bytes = []
    reader = TsvFile(SourceFile(file(content)), COLUMNS, on_read=read_bytes.append)
    for _ in reader.map(lambda block: block):
        pass
    assert sum(read_bytes) == len(content)
    assert reader.hashes == {reader.file: hashlib.sha256(content).hexdigest()}


def test_a_damaged_zip_is_refused(tmp_path):
    path = tmp_path / "MINDsmall_train.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("news.tsv", b"1\ta\tb\n" * 1000)
    path.write_bytes(path.read_bytes().replace(b"1\ta\tb\n", b"1\tA\tb\n", 1))
    with pytest.raises(UserError, match=r"news items\.tsv cannot be read: Bad CRC-32.*Download"):
        for _ in TsvFile(SourceFile(path, "news.tsv"), COLUMNS).map(lambda block: block):
            pass


def test_rows_that_a_caller_refuses_are_left_out_and_named(file):
    reader = TsvFile(SourceFile(file(b"1\ta\tx\nbad\n3\tb\ty\n4\ta\tz\n")), COLUMNS)
    (rows,) = reader.map(lambda block: block)
    assert rows.require(np.array([True, True, True]), "id", "wrong") is rows
    rest = rows.require(np.array([True, False, True]), "title", "not a")
    assert rest.lines.tolist() == [1, 4]
    assert rest.column("url").to_pylist() == ["x", "z"]
    assert rest.num_bad == 2
    assert rest.bad[-1] == BadLine(3, "title", "not a", "b")
    again = rest.require(pa.array([False, True]), "url", "no", lambda row: f"row {row}")
    assert again.bad[-1] == BadLine(1, "url", "no", "row 0")


def test_an_error_shows_at_most_80_characters_of_the_line():
    message = str(BadLine(3, "title", "too long", "word " * 1000))
    assert "line 3, column title: too long: 'word word" in message
    assert len(message.partition("long: ")[2]) == 80 + len("''")


fields = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\0"), max_size=12
)


@given(
    st.lists(st.tuples(st.integers(0, 99).map(str), fields, fields), min_size=1, max_size=9),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_as_it_was_written(tmp_path_factory, rows, line_end, last_line_end):
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    text = line_end.join("\t".join(row) for row in rows) + line_end * last_line_end
    path.write_bytes(text.encode())
    assert rows_of(path) == rows


@given(
    st.integers(1, 20),
    st.lists(
        st.sampled_from(
            [b"\t", b"\t", b"\n", b"\r\n", b"\r", b"a", b'"', "é".encode(), b"\xff", b"\0"]
        ),
        max_size=30,
    ),
    st.sampled_from([64, 1 << 20]),
)
@settings(max_examples=400, deadline=None)
def test_every_line_is_read_or_named(tmp_path_factory, good_lines, parts, block):
    content = b"1\ta\tb\n" * good_lines + b"".join(parts)
    path = tmp_path_factory.getbasetemp() / "bytes.tsv"
    path.write_bytes(content)
    expected, wrong = [], []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        fields = line.split(b"\t") if line else [b""] * 3
        try:
            text = tuple(field.decode() for field in fields)
        except UnicodeDecodeError:
            text = ()
        if len(text) == 3 and b"\r" not in line and b"\0" not in line:
            expected.append((number, text))
        else:
            wrong.append(number)
    with patch.object(tsv, "BLOCK_BYTES", block):
        rows, lines, bad = read(path)
    assert list(zip(lines, rows, strict=True)) == expected
    assert [b.line for b in bad] == wrong or len(bad) >= tsv.LISTED


@pytest.mark.parametrize(("name", "limit"), [("BLOCK_LINES", 7), ("BLOCK_SPACES", 5)])
def test_a_block_of_many_short_lines_or_words_is_parsed_in_parts(file, monkeypatch, name, limit):
    monkeypatch.setattr(tsv, name, limit)
    texts = ["a b", "", " " * 20, "x" * 200] * 25
    rows = [(str(i), text, "") for i, text in enumerate(texts)]
    content = "".join("\t".join(row) + "\n" for row in rows).encode()
    blocks = list(TsvFile(SourceFile(file(content)), COLUMNS).map(lambda block: block))
    assert len(blocks) > len(rows) / limit
    numbers = [number for block in blocks for number in block.lines.tolist()]
    assert numbers == list(range(1, len(rows) + 1))
    assert rows_of(file(content)) == rows


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("before", [0, 1, 499, 500, 501])
def test_a_line_of_absurd_length_is_a_bad_line(file, monkeypatch, extra, before):
    monkeypatch.setattr(tsv, "LONGEST_LINE", 1000)
    long = b"2\tb\t" + b"x" * (996 + extra)
    _, numbers, bad = read(file(b"1\ta\t" + b"y" * before + b"\n" + long + b"\n3\tc\t\n"))
    assert numbers == ([1, 3] if extra else [1, 2, 3])
    assert [(b.line, b.problem) for b in bad] == [(2, "over 0 MB long")] * extra
