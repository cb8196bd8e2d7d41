import re

import pytest
from conftest import tiny_behaviors, tiny_news, write_mind

from newsrec.__main__ import main
from newsrec.data.mind import open_mind


def table(text):
    """Return the cells of each row by its first cell."""
    rows = [re.split(r"\s*[│┃]\s*", line.strip())[1:-1] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def prepare(root):
    main(["prepare", "--data.root", str(root)])


def test_prepare_shows_what_was_counted_in_each_split(mind_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    prepare(mind_dir)
    shown = capsys.readouterr().out
    rows, splits = table(shown), open_mind(mind_dir).splits
    assert rows[""] == ["train", "dev", "test"]
    assert rows["impressions"] == ["41", "23", "15"]
    assert rows["users"] == [str(splits[name].counts["users"]) for name in rows[""]]
    assert rows["clicks"] == [*(str(splits[n].counts["clicks"]) for n in rows[""][:2]), "no labels"]
    assert rows["candidates not in news.tsv"] == ["2", "1", "1"]
    assert rows["history clicks not in news.tsv"] == ["3", "1", "1"]
    assert rows["empty histories"] == ["2", "1", "1"]
    assert rows["days"][2] == "2019-11-16 to 2019-11-16"
    assert "20 stories, 8 users" in shown
    assert str(open_mind(mind_dir).cache) in shown.replace("\n", "")


def test_prepare_leaves_arrays_that_the_next_start_reads(mind_dir, monkeypatch):
    prepare(mind_dir)

    def compile_again(folders, target):
        raise AssertionError("compiled a second time")

    monkeypatch.setattr("newsrec.data.mind.compile_mind", compile_again)
    assert len(open_mind(mind_dir).news) == 20
    prepare(mind_dir)


def test_prepare_takes_any_subset_of_splits(tmp_path, capsys):
    news, behaviors = tiny_news(), tiny_behaviors()
    root = write_mind(tmp_path / "only", {"dev": news["dev"]}, {"dev": behaviors["dev"]})
    prepare(root)
    assert table(capsys.readouterr().out)["impressions"] == ["23"]


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
