import os
import re

import pytest
from conftest import tiny_behaviors, tiny_news, write_mind

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.text import tokenize_catalogue
from newsrec.plm_source import load_tokenizer


def table(text):
    """Return the cells of each row by its first cell."""
    rows = [re.split(r"\s*[│┃]\s*", line.strip())[1:-1] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def prepare(root, *options):
    main(["prepare", "--data.root", str(root), *options])


def test_prepare_shows_what_was_counted_in_each_split(mind_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    prepare(mind_dir)
    shown = capsys.readouterr().out
    rows, splits = table(shown), open_mind(mind_dir).splits
    assert rows[""] == ["train", "dev", "test"]
    assert rows["impressions"] == ["41", "23", "15"]
    assert rows["without labels"] == ["0", "0", "15"]
    assert rows["users"] == [str(splits[name].counts["users"]) for name in rows[""]]
    assert rows["news"] == ["14", "15", "15"]
    assert rows["repeated titles"] == ["1", "0", "1"]  # N13 and N14
    assert rows["clicks"] == [*(str(splits[n].counts["clicks"]) for n in rows[""][:2]), "no labels"]
    assert [cell.split()[0] for cell in rows["unknown candidates"]] == ["2", "1", "1"]
    assert rows["unknown history clicks"] == ["3", "1", "1"]
    assert rows["empty histories"] == ["2   4.9%", "1   4.3%", "1   6.7%"]
    assert (rows["first day"][0], rows["last day"][2]) == ("2019-11-11", "2019-11-16")
    assert rows["lines dropped"] == ["0", "0", "0"]
    assert "20 news items, 8 users" in shown
    assert str(open_mind(mind_dir).cache) in shown.replace("\n", "")


def test_a_table_of_three_large_splits_fits_80_columns(mind_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    data = open_mind(mind_dir)
    for split in data.splits.values():
        split.counts.update(candidates=88_888_888, impressions=2_370_727, empty_histories=47_000)
    monkeypatch.setattr("newsrec.commands.prepare.open_mind", lambda *args, **kwargs: data)
    prepare(mind_dir)
    assert table(capsys.readouterr().out)["candidates"] == ["88,888,888"] * 3


def test_prepare_leaves_arrays_that_the_next_start_reads(mind_dir, monkeypatch):
    prepare(mind_dir)

    def compile_again(*args):
        raise AssertionError("compiled a second time")

    monkeypatch.setattr("newsrec.data.store.compile_splits", compile_again)
    assert len(open_mind(mind_dir).news) == 20
    prepare(mind_dir)
    prepare(mind_dir, "--check")


def test_prepare_takes_any_subset_of_splits(tmp_path, capsys):
    news, behaviors = tiny_news(), tiny_behaviors()
    root = write_mind(tmp_path / "only", {"dev": news["dev"]}, {"dev": behaviors["dev"]})
    prepare(root)
    assert table(capsys.readouterr().out)["impressions"] == ["23"]


def test_check_finds_a_file_whose_size_and_time_are_as_before(mind_dir, capsys):
    path = mind_dir / "dev" / "behaviors.tsv"
    os.utime(path, (1, 1))
    prepare(mind_dir)
    path.write_bytes(path.read_bytes().replace(b"N15-1", b"N15-0", 1))
    os.utime(path, (1, 1))
    capsys.readouterr()
    prepare(mind_dir)
    before = int(table(capsys.readouterr().out)["clicks"][1])
    prepare(mind_dir, "--check")
    shown = capsys.readouterr().out
    assert int(table(shown)["clicks"][1]) == before - 1
    assert f"  {path}\n" in shown
    prepare(mind_dir, "--check")
    assert "all files and arrays are as compiled" in capsys.readouterr().out


def test_check_finds_arrays_that_have_changed_tokens_too(mind_dir, plm_dir, capsys):
    data = open_mind(mind_dir)
    tokenize_catalogue(data, ("title",), 16, load_tokenizer(str(plm_dir)))
    (tokens,) = data.cache.parent.glob("tokens-*")
    path = data.cache / "labels.npy"
    whole = path.read_bytes()
    for damaged in (path, tokens / "token_ids.npy"):
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\7")
    prepare(mind_dir, "--check")
    shown = capsys.readouterr().out
    assert str(path) in shown
    assert str(tokens / "token_ids.npy") in shown
    assert "all files and arrays are as compiled" not in shown
    assert path.read_bytes() == whole
    assert not tokens.exists()  # made anew when needed


def test_a_file_that_was_cut_off_is_said_each_time(mind_dir, capsys):
    path = mind_dir / "test" / "behaviors.tsv"
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        prepare(mind_dir)
        assert f"{path}: its last line has no line end" in capsys.readouterr().out


def test_damaged_arrays_that_belong_to_another_are_said(mind_dir, capsys, monkeypatch):
    prepare(mind_dir)
    path = open_mind(mind_dir).cache / "labels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("newsrec.data.cache.shutil.rmtree", refuse)
    with pytest.raises(SystemExit):
        prepare(mind_dir, "--check")
    assert "is damaged and cannot be removed" in capsys.readouterr().err


def test_skipped_lines_are_counted_and_shown(mind_dir, capsys):
    path = mind_dir / "dev" / "behaviors.tsv"
    path.write_bytes(path.read_bytes() + b"seven\tU1\t11/11/2019 9:05:58 AM\t\tN1-0\n")
    with pytest.raises(SystemExit) as exit_:
        prepare(mind_dir)
    assert exit_.value.code == 2
    assert "--data.on_bad_line drop" in capsys.readouterr().err
    for _ in range(2):  # compiled now, and read later
        prepare(mind_dir, "--data.on_bad_line", "drop")
        shown = capsys.readouterr().out
        assert table(shown)["impressions"] == ["41", "23", "15"]
        assert table(shown)["lines dropped"] == ["0", "1", "0"]
        assert "line 24, column impression_id: not a whole number: 'seven'" in shown


def test_a_folder_name_in_brackets_is_not_taken_for_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    root = write_mind(tmp_path / "[bold]" / "[mind", tiny_news(), tiny_behaviors())
    prepare(root)
    assert capsys.readouterr().out.count(str(root)) == 2


def test_prepare_names_the_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        prepare(tmp_path / "nowhere")
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "nowhere") in error
    assert "--data.root" in error
