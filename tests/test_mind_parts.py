"""MIND's behaviors.tsv compiled in parts: lines, counts and messages are as by one process."""

import hashlib
import logging
import shutil
from itertools import pairwise
from unittest.mock import patch

import pytest
from conftest import refused, tiny_behaviors, tiny_news, write_mind
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parts import as_by_one_process, backwards, compiled
from test_xmind import translate

from newsrec.data import parts
from newsrec.data.readers import tsv
from newsrec.data.readers.source import SourceFile
from newsrec.data.readers.tsv import TsvFile, divide
from newsrec.errors import UserError

LINES = (b"1\ta\tb", b"2\t\t", b"3\tc\td\r", b"", b"one\ttwo", b"4\t\0\t", b"5\t\xff\t", tsv.BOM)
LINES += (b"6\t" + b"x" * 60 + b"\t", b"y" * 200)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tsv") / "lines.tsv"


def read(path, spans=(None,)):
    """Return the blocks of some spans until an error, and whether a last line is cut off."""
    blocks, cut_off, error = [], False, ""
    for span in spans:
        file = TsvFile(SourceFile(path), ("id", "title", "url"), span=span)
        try:
            for rows in file.map(lambda rows: rows):
                found = rows.table.to_pylist(), rows.lines.tolist(), rows.bad, rows.num_bad
                blocks.append(found)
        except UserError as raised:
            error = str(raised)
            break
        cut_off |= file.cut_off
        assert file.hashes == (
            {} if span and span.begin
            else {SourceFile(path): hashlib.sha256(path.read_bytes()).hexdigest()}
        )  # fmt: skip
    return blocks, cut_off, error


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), max_size=30),
    st.booleans(), st.integers(1, 90), st.integers(1, 300), st.sampled_from([50, 1000]),
)  # fmt: skip
def test_spans_of_any_file_give_the_blocks_of_the_whole(
    place, lines, ends, block, most_bytes, longest
):
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    place.write_bytes(content)
    with patch.multiple(tsv, BLOCK_BYTES=block, LONGEST_LINE=longest):
        spans = divide(SourceFile(place), most_bytes)
        blocks, cut_off, error = read(place)
        found = read(place, spans)
    assert found[1:] == (cut_off, error)
    assert found[0][: len(blocks)] == blocks
    assert error or len(found[0]) == len(blocks)  # an error overtakes blocks that are being parsed
    assert spans[0].begin == 0
    for span, following in pairwise(spans):
        assert span.begin + span.num_bytes == following.begin
        assert span.num_bytes >= most_bytes
        assert content[following.begin - 1 :][:1] == b"\n"
        assert following.first_line == content[: following.begin].count(b"\n") + 1
    assert spans[-1].begin + spans[-1].num_bytes == len(content)


@pytest.fixture
def in_parts(monkeypatch):
    """Divide after every 400 bytes or so."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 400)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(("line_end", "last"), [("\n", True), ("\r\n", False)])
def test_parts_give_the_same_bytes(tmp_path, line_end, last):
    root = write_mind(tmp_path, tiny_news(), tiny_behaviors(), line_end, last)
    path = root / "dev" / "behaviors.tsv"
    path.write_bytes(tsv.BOM + path.read_bytes())
    numbers = []

    def engine(job):
        numbers.append(len(job.parts))
        yield from backwards(job)

    assert compiled(root, engine) == compiled(root)
    assert numbers[0] > 8


@pytest.mark.usefixtures("in_parts")
def test_languages_are_divided_as_well(mind_dir):
    translate(mind_dir, "swh")
    assert compiled(mind_dir, backwards) == compiled(mind_dir)


@pytest.mark.usefixtures("in_parts")
def test_bad_lines_are_named_or_left_out_as_by_one_process(mind_dir, caplog):
    path = mind_dir / "train" / "behaviors.tsv"
    lines = path.read_bytes().splitlines()
    lines[30] = b"31\tU1\tnoon\t\tN1-0"
    lines[7] = b"cut"
    lines[38] = b"\0" * 1500  # longer than several blocks
    lines += [b"%d\tU1\t11/11/2019 9:05:58 AM\tN1\tN1-7" % n for n in range(12)]
    path.write_bytes(b"\n".join(lines))
    found = as_by_one_process(mind_dir, caplog)
    assert "behaviors.tsv, line 8, 1 columns instead of 5: 'cut'" in found.error
    assert "lines dropped: 15" in found.warnings[0]
    assert "line 31, column time: not a time" in found.warnings[0]
    assert "line 48, column candidates: a label other" in found.warnings[0]
    assert "its last line has no line end" in found.warnings[1]


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("content", [b"", b"cut", b"\n" * 900, b"x" * 900])
@pytest.mark.parametrize("on_bad_line", ["error", "drop"])
def test_a_file_without_good_lines_is_named_as_by_one_process(mind_dir, content, on_bad_line):
    (mind_dir / "dev" / "behaviors.tsv").write_bytes(content)
    said = []
    for engine in (None, backwards):
        with pytest.raises(UserError) as error:
            compiled(mind_dir, engine, on_bad_line)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "dev/behaviors.tsv" in said[0]


@pytest.mark.usefixtures("in_parts")
def test_a_split_in_a_zip_is_compiled_by_one_process(mind_dir, caplog, capsys):
    caplog.set_level(logging.INFO, "newsrec")
    for split in ("train", "dev", "test"):
        folder = mind_dir / split
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
        if split == "train":
            assert compiled(mind_dir, backwards) == compiled(mind_dir)
            assert "train.zip, behaviors.tsv is in a zip" in caplog.text
    capsys.readouterr()  # an older handler of the log may have complained
    said = refused(capsys, "prepare", "--data.root", mind_dir, "--jobs", "2")
    assert "in a zip, which can be divided only after it is unpacked. Leave them out." in said
