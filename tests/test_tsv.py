from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import tsv
from newsrec.data.tsv import bad_line, read_tsv
from newsrec.errors import UserError

COLUMNS = ("id", "title", "url")


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "stories.tsv"
        path.write_bytes(content)
        return path

    return write


def rows_of(table):
    return [tuple(row.values()) for row in table.to_pylist()]


def test_nothing_is_quoted_escaped_stripped_or_taken_for_missing(file):
    rows = [
        ("1", '"Slow" trains', ""),
        ("2", '"an open quote', "NaN"),
        ("3", "  spaces, commas\\n ", "NULL"),
        ("4", "café — naïve\u2028\x85 \x0b", "null"),
        ("", "", ""),
    ]
    path = file("".join("\t".join(row) + "\n" for row in rows).encode())
    assert rows_of(read_tsv(path, COLUMNS)) == rows


@pytest.mark.parametrize("content", [b"1\ta\tb\n2\tc\td\n", b"1\ta\tb\n2\tc\td"])
def test_the_last_line_end_may_be_missing(file, content):
    assert rows_of(read_tsv(file(content), COLUMNS)) == [("1", "a", "b"), ("2", "c", "d")]


def test_windows_line_ends_are_not_part_of_the_last_column(file):
    assert rows_of(read_tsv(file(b"1\ta\tb\r\n2\tc\t\r\n"), COLUMNS)) == [
        ("1", "a", "b"),
        ("2", "c", ""),
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column(file):
    assert rows_of(read_tsv(file(b"\xef\xbb\xbf1\ta\tb\n"), COLUMNS)) == [("1", "a", "b")]


def test_only_the_wanted_columns_are_returned(file):
    table = read_tsv(file(b"1\ta\tb\n"), COLUMNS, keep=("id", "url"))
    assert table.column_names == ["id", "url"]
    assert table.schema.types == [pa.string(), pa.string()]


def test_rows_keep_the_order_of_lines_over_many_blocks(file, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    content = "".join(f"{i}\ttitle {i}\t\n" for i in range(500)).encode()
    table = read_tsv(file(content), COLUMNS)
    assert table["id"].num_chunks > 100
    assert table["id"].to_pylist() == [str(i) for i in range(500)]


@pytest.mark.parametrize("line", [1, 2, 7, 399, 400])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"one\ttwo", "2 columns instead of 3"),
        (b"one\ttwo\tthree\tfour", "4 columns instead of 3"),
        (b"one\tt\xff\xfewo\tthree", "not UTF-8"),
        (b"one\t\0\0\0\0\tthree", "NUL bytes"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(file, monkeypatch, line, text, problem):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    lines = [f"{i}\ttitle {i}\t".encode() for i in range(400)]
    lines[line - 1] = text
    path = file(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError) as error:
        read_tsv(path, COLUMNS)
    assert f"{path}, line {line}, " in str(error.value)
    assert problem in str(error.value)


def test_a_carriage_return_inside_a_field_is_reported(file):
    with pytest.raises(UserError, match=r"line 2, .* columns instead of 3"):
        read_tsv(file(b"1\ta\tb\n2\tc\rd\te\n3\tf\tg\n"), COLUMNS)


def test_a_line_longer_than_a_block_is_reported(file, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 64)
    path = file(b"1\ta\tb\n" + b"2\t" + b"long " * 99 + b"\tb\n" + b"3\ta\tb\n" * 20)
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        read_tsv(path, COLUMNS)


def test_a_blank_line_is_a_row_of_empty_fields_for_the_caller_to_refuse(file):
    table = read_tsv(file(b"1\ta\tb\n\n2\tc\td\n"), COLUMNS)
    assert rows_of(table) == [("1", "a", "b"), ("", "", ""), ("2", "c", "d")]


def test_an_empty_file_is_refused(file):
    with pytest.raises(UserError, match=r"stories\.tsv is empty"):
        read_tsv(file(b""), COLUMNS)


def test_an_error_shows_at_most_80_characters_of_the_line(tmp_path):
    message = str(bad_line(tmp_path / "x", 3, "title", "word " * 1000, "too long"))
    assert "line 3, column title: too long: 'word word" in message
    assert len(message) < len(str(tmp_path)) + 200


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
    assert rows_of(read_tsv(path, COLUMNS)) == rows


@given(
    st.integers(1, 20),
    st.lists(
        st.sampled_from([b"\t", b"\t", b"\n", b"\r\n", b"\r", b"a", b'"', "é".encode()]),
        max_size=30,
    ),
    st.sampled_from([b"", b"", b"\xff", b"\0"]),
    st.sampled_from([64, 1 << 20]),
)
@settings(max_examples=400, deadline=None)
def test_every_line_is_read_or_the_file_is_refused(
    tmp_path_factory, good_lines, parts, damage, block
):
    content = b"1\ta\tb\n" * good_lines + b"".join(parts) + damage
    path = tmp_path_factory.getbasetemp() / "bytes.tsv"
    path.write_bytes(content)
    lines = [line.split(b"\t") if line else [b""] * 3 for line in content.splitlines()]
    with patch.object(tsv, "BLOCK_BYTES", block):
        if damage or any(len(line) != 3 for line in lines):
            with pytest.raises(UserError, match=r"bytes\.tsv, line \d"):
                read_tsv(path, COLUMNS)
        else:
            expected = [tuple(field.decode() for field in line) for line in lines]
            assert rows_of(read_tsv(path, COLUMNS)) == expected
