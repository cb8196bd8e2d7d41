import base64
import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused
from test_ebnerd import write as write_ebnerd
from test_xmind import translate

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.to_parquet import mind_to_parquet
from newsrec.report import inspection_page
from newsrec.report.inspection_page import (
    HISTORY_LENGTHS,
    by_hour,
    clicks_by_position,
    history_shares,
    lives,
)
from newsrec.simulation.simulate import simulate


def inspected(capsys, *options):
    main(["inspect", *map(str, options)])
    return capsys.readouterr().out


def test_minds_files_are_told_with_the_next_command(mind_dir, capsys):
    said = inspected(capsys, mind_dir)
    assert "Format: MIND's format" in said
    assert "Without clicks: test" in said
    next_line = f"Next: python -m newsrec fit --config configs/demo.yaml --data.root {mind_dir}\n"
    assert said.endswith(next_line)


def test_the_format_the_language_and_odd_rows_are_told(mind_dir, tmp_path, capsys):
    mind_to_parquet(mind_dir, tmp_path / "own")
    assert "Format: own data as Parquet" in inspected(capsys, tmp_path / "own")
    said = inspected(capsys, write_ebnerd(tmp_path / "ebnerd"))
    assert "Format: EB-NeRD" in said
    assert "Beyond-accuracy lists of test (impression id 0)" in said
    assert "count in no metric: 2." in said
    assert said.count("Beyond-accuracy lists") == 1
    assert "Danish" in said
    assert "--model.plm sentence-transformers/paraphrase-multilingual" in said.splitlines()[-1]
    translate(mind_dir / "swh", "swh")
    translate(mind_dir / "fin", "fin")
    assert "Finnish, Swahili, each news item in one of them" in inspected(capsys, mind_dir)
    assert "Language: Swahili; " in inspected(capsys, mind_dir / "swh")


def test_a_simulated_world_in_the_layout_of_ebnerd_is_not_danish(tmp_path, capsys):
    simulate(tmp_path / "world", "demo", seed=0, file_format="ebnerd")
    said = inspected(capsys, tmp_path / "world")
    assert "as in English" in said
    assert "--model.plm" not in said


def test_missing_splits_and_lines_that_cannot_be_read_are_told(mind_dir, capsys):
    shutil.rmtree(mind_dir / "dev")
    with (mind_dir / "train" / "behaviors.tsv").open("a") as file:
        file.write("x\ty\n")
    said = inspected(capsys, mind_dir)
    assert "Missing: dev. Without dev, --data.val last_day" in said
    assert re.search(r"lines dropped +│ +1 ", said)
    assert said.endswith("--data.val last_day\n")


def test_without_train_a_baseline_comes_next(mind_dir, capsys):
    shutil.rmtree(mind_dir / "train")
    said = inspected(capsys, mind_dir)
    assert "Next: python -m newsrec evaluate --scorer recent" in said
    assert "--split dev" in said


def test_a_folder_without_data_is_refused(tmp_path, capsys):
    assert "has no split" in refused(capsys, "inspect", tmp_path)
    assert "is not a folder" in refused(capsys, "inspect", tmp_path / "nothing")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "news.tsv").touch()
    assert "has no behaviors.tsv" in refused(capsys, "inspect", tmp_path)


def test_pictures_are_written_as_asked(mind_dir, tmp_path, capsys, monkeypatch):
    from PIL import Image

    inspected(capsys, mind_dir, "--output", tmp_path / "folder")
    png, page = (tmp_path / "folder" / name for name in ("inspect.png", "inspect.html"))
    drawn, text = png.read_bytes(), page.read_text(encoding="utf-8")
    assert Image.open(io.BytesIO(drawn)).size == (1080, 840)
    assert base64.b64encode(drawn).decode() in text
    assert "<td>impressions</td><td>41</td><td>23</td><td>15</td>" in text
    monkeypatch.setattr(inspection_page, "draw", lambda data: drawn)  # takes seconds
    for name in ("a.png", "a.html"):
        inspected(capsys, mind_dir, "--output", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == drawn
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("name", "said"),
    [("x.pdf", "name a .png, a .html or a folder"), ("full", "is not empty"), ("d.png", "folder")],
)
def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, capsys, name, said):
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "d.png").mkdir()
    assert said in refused(capsys, "inspect", tmp_path / "no-data", "--output", tmp_path / name)


def test_numbers_of_the_pictures_agree_with_loops(mind_dir, monkeypatch):
    data = open_mind(mind_dir)
    monkeypatch.setattr(inspection_page, "BLOCK", 7)
    shown = {}
    for split in data.splits.values():
        hours, lengths = np.zeros(24), np.zeros(len(HISTORY_LENGTHS))
        clicked, chance = np.zeros(20), np.zeros(20)
        for i, time in enumerate(split.time):
            hours[time.item().hour] += 1
            history = split.histories.lengths[split.history[i]]
            lengths += history <= HISTORY_LENGTHS
            row = slice(*split.candidates.offsets[i : i + 2])
            for news in split.candidates.values[row]:
                shown.setdefault(int(news), []).append(time.item())
            if split.labels is not None:
                labels = split.labels[row]
                for position, label in enumerate(labels):
                    clicked[position] += label
                    chance[position] += labels.sum() / len(labels)
        number = len(split.time)
        np.testing.assert_allclose(by_hour(split), hours / number)
        np.testing.assert_allclose(history_shares(split), lengths / number)
        if split.labels is not None:
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(clicks_by_position(split), clicked / chance)
    days = [(max(t) - min(t)).total_seconds() / 86400 for n, t in shown.items() if n > 1]
    np.testing.assert_allclose(np.sort(lives(data)), np.sort(days))


def test_a_random_order_has_no_position_whatever_the_lengths():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, 20_000)
    offsets = to_offsets(lengths)
    labels = np.zeros(offsets[-1], dtype=np.int8)
    labels[offsets[:-1] + rng.integers(0, lengths)] = 1
    split = SimpleNamespace(
        history=lengths, labels=labels, candidates=Ragged(np.zeros(offsets[-1]), offsets)
    )
    assert np.abs(clicks_by_position(split) - 1).max() < 0.15
