"""xMIND: translations are invented, beside the tiny MIND of conftest.py."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import KNOWN_IN, NEWS, refused

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.xmind import draw_languages
from newsrec.errors import UserError

SPLITS = ("train", "dev", "test")


def translated(news_id, language):
    """Return the invented title and abstract; an empty text stays empty."""
    return [text and f"{language} {text}" for text in NEWS[news_id][2:]]


def translate(folder, language, name="xMINDsmall_{}", header="", without=()):
    """Write a language's ``news.tsv`` of each split as the download has them."""
    for split in SPLITS:
        place = folder / name.format(split)
        place.mkdir(parents=True)
        rows = [[n, *translated(n, language)] for n in KNOWN_IN[split] if n not in without]
        text = header + "".join("\t".join(row) + "\n" for row in rows)
        (place / "news.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def root(mind_dir):
    translate(mind_dir / "swh", "swh")
    translate(mind_dir / "FIN", "fin", header="nid\ttitle\tabstract\n")
    return mind_dir


def texts(data):
    return {row["news_id"]: (row["title"], row["abstract"]) for row in data.news.to_pylist()}


def assert_same_but_texts(found, expected):
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    for name in ("news_id", "category", "subcategory"):
        assert found.news[name].equals(expected.news[name])


@pytest.fixture
def english(mind_dir, tmp_path):
    return open_mind(shutil.copytree(mind_dir, tmp_path / "english"))


@pytest.mark.parametrize("language", ["swh", "FIN"])
def test_the_folder_of_a_language_is_that_language_alone(english, root, language):
    found = open_mind(root / language)
    assert found.cache.name.startswith("xmind-")
    assert found.cache.parents[1] == root / language
    assert_same_but_texts(found, english)
    for news_id, text in texts(found).items():
        assert text == tuple(translated(news_id, language.lower())), news_id


def test_several_languages_are_mixed_by_news_id(english, root):
    found = open_mind(root)
    assert_same_but_texts(found, english)
    ids = found.news["news_id"].to_pylist()
    drawn = draw_languages(ids, 2, seed=0)
    assert 0 < drawn.sum() < len(ids)
    for news_id, number in zip(ids, drawn, strict=True):
        assert texts(found)[news_id] == tuple(translated(news_id, ("fin", "swh")[number]))
    assert open_mind(root).cache == found.cache


def test_languages_and_seed_can_be_set(root):
    first = open_mind(root).cache
    settings = {"languages": ["ENG", "swh"], "seed": 3}
    (root / "languages.json").write_text(json.dumps(settings))
    found = open_mind(root)
    assert found.cache != first
    ids = found.news["news_id"].to_pylist()
    for news_id, number in zip(ids, draw_languages(ids, 2, seed=3), strict=True):
        expected = translated(news_id, "swh") if number else NEWS[news_id][2:]
        assert texts(found)[news_id] == tuple(expected)


def test_a_draw_depends_on_id_and_seed_alone_and_is_fair():
    ids = [f"N{i}" for i in range(6000)]
    drawn = draw_languages(ids, 3, seed=0)
    np.testing.assert_array_equal(drawn[::-1], draw_languages(ids[::-1], 3, seed=0))
    assert (drawn != draw_languages(ids, 3, seed=1)).mean() > 0.5
    assert np.abs(np.bincount(drawn) / len(ids) - 1 / 3).max() < 0.03


def test_the_layout_of_the_download_is_found_zipped_or_not(english, mind_dir):
    folder = translate(mind_dir / "xMIND" / "swh", "swh")
    translate(mind_dir / "xMIND" / "swh", "large", name="xMINDlarge_{}")
    for split in SPLITS:
        (mind_dir / split).rename(mind_dir / f"MINDsmall_{split}")
    for split in ("train", "test"):
        with zipfile.ZipFile(folder / f"xMINDsmall_{split}.zip", "w") as archive:
            archive.write(folder / f"xMINDsmall_{split}" / "news.tsv", f"{split}/news.tsv")
    for root in (mind_dir, folder):
        found = open_mind(root)
        assert_same_but_texts(found, english)
        assert texts(found)["N1"] == tuple(translated("N1", "swh"))
    shutil.rmtree(folder / "xMINDsmall_train")
    shutil.rmtree(folder / "xMINDlarge_train")
    (folder / ".newsrec").rename(folder / "old")
    assert texts(open_mind(folder))["N1"] == tuple(translated("N1", "swh"))


def test_news_of_three_columns_in_place_of_minds_have_no_category(english, mind_dir):
    for split in SPLITS:
        rows = ["\t".join([n, *translated(n, "ron")]) for n in KNOWN_IN[split]]
        (mind_dir / split / "news.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert reader_of(mind_dir).name == "xmind"
    found = open_mind(mind_dir)
    for name, array in english.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert set(found.news["category"].to_pylist()) == {""}
    assert texts(found)["N3"] == tuple(translated("N3", "ron"))


def test_news_without_translation_stay_english_and_are_counted(mind_dir, caplog):
    translate(mind_dir / "tur", "tur", without=("N2", "N5"))
    found = open_mind(mind_dir)
    assert texts(found)["N2"] == NEWS["N2"][2:]
    assert "train/news.tsv: 2 news items have no translation" in caplog.text


def test_a_bad_line_is_named_by_the_file_of_the_language(root):
    path = root / "swh" / "xMINDsmall_dev" / "news.tsv"
    path.write_text(path.read_text() + "N15\tonly two\n")
    with pytest.raises(UserError, match=r"swh/xMINDsmall_dev/news.tsv, line 16, 2 columns inst"):
        open_mind(root)
    data = open_mind(root, "drop")
    assert any("swh/xMINDsmall_dev" in file for file in data.bad_lines)


@pytest.mark.parametrize(
    "settings", ["[", '["swh"]', '{"languages": ["xyz"]}', '{"languages": "swh"}', '{"seed": -1}',
                 '{"languages": ["swh", "SWH"]}', '{"speed": 1}'],
)  # fmt: skip
def test_wrong_settings_are_refused(root, settings):
    (root / "languages.json").write_text(settings)
    with pytest.raises(UserError, match=r"languages.json is not JSON such as"):
        open_mind(root)


def test_a_language_or_a_split_that_is_missing_is_named(root, tmp_path):
    (root / "languages.json").write_text('{"languages": ["jpn"]}')
    with pytest.raises(UserError, match=r"names 'jpn', and .* no such folder, only fin, swh"):
        open_mind(root)
    (root / "languages.json").unlink()
    shutil.rmtree(root / "swh" / "xMINDsmall_dev")
    with pytest.raises(UserError, match=r"swh has no xMIND\*_dev"):
        open_mind(root)


def test_a_language_without_mind_says_so(tmp_path, capsys):
    translate(tmp_path / "alone" / "swh", "swh")
    assert "has no split" in refused(capsys, "prepare", "--data.root", tmp_path / "alone")


def test_commands_run_from_within_the_folder(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    main(["prepare", "--data.root=swh"])
    main(["evaluate", "--scorer=tfidf", "--data.root=swh", "--split=dev", "--output=out"])
    assert Path("out/metrics.json").is_file()
    monkeypatch.chdir("swh")
    main(["prepare", "--data.root=."])
    assert "20 news items" in capsys.readouterr().out
