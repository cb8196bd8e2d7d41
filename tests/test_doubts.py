"""Warnings of repeated ids, and of splits that do not follow each other in time."""

from datetime import datetime

import pandas as pd
import pytest

from newsrec.data.dataset import open_mind
from newsrec.data.doubts import doubts
from newsrec.report.data_folder import print_data

DAYS = {"train": 11, "dev": 12, "test": 13}


def written(root, ids=None, days=None):
    """Write three impressions a split as Parquet; the ids and days of some splits are given."""
    for split, day in (DAYS | (days or {})).items():
        (root / split).mkdir()
        news = pd.DataFrame({"news_id": ["N1", "N2"], "title": ["One", "Two"]})
        news.to_parquet(root / split / "news.parquet")
        impressions = {
            "impression_id": (ids or {}).get(split, [1, 2, 3]),
            "user_id": ["U1", "U2", "U1"],
            "time": [datetime(2019, 11, day, hour) for hour in (3, 2, 4)],
            "history": [["N1"]] * 3,
            "candidates": [["N1", "N2"]] * 3,
            "labels": [[True, False]] * 3,
        }
        pd.DataFrame(impressions).to_parquet(root / split / "impressions.parquet")
    return open_mind(root)


def of(data):
    return doubts([*data.splits.values()])


def test_splits_in_order_with_their_own_ids_raise_no_doubt(tmp_path):
    assert of(written(tmp_path)) == []  # ids may begin again in the next split


@pytest.mark.parametrize("ids", [[7, 7, 7], ["7", "007", "7"]])
def test_repeated_ids_are_counted(tmp_path, ids):
    (said,) = of(written(tmp_path, {"dev": ids}))
    assert said.startswith("Warning, dev: 2 impressions have an id that occurs earlier, such ")
    assert "such as 7." in said


def test_the_lists_of_eb_nerd_that_share_the_id_0_are_no_repeats(tmp_path):
    split = written(tmp_path, {"test": [0, 0, 5]}).splits["test"]
    assert len(doubts([split])) == 1
    assert doubts([split._replace(counts=split.counts | {"beyond_accuracy": 2})]) == []


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ({"train": 14}, ["dev begins at 2019-11-12T02:00:00, before train ends at 2019-11-14T04"]),
        ({"dev": 11}, ["dev begins at 2019-11-11T02:00:00, before train ends at 2019-11-11T04"]),
        ({"dev": 20}, ["test begins at 2019-11-13T02:00:00, before dev ends at 2019-11-20T04"]),
        ({"train": 3, "dev": 2, "test": 1}, ["dev begins", "test begins"]),
    ],
)
def test_a_split_that_begins_before_the_one_before_it_ends_is_named(tmp_path, days, said):
    found = of(written(tmp_path, days=days))
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_prepare_and_a_run_show_the_warnings(tmp_path, capsys, plm_dir):
    from newsrec.data.datamodule import MindDataModule

    data = written(tmp_path, {"train": [1, 1, 2]}, {"train": 30})
    print_data(data)
    said = " ".join(capsys.readouterr().out.split())
    assert "Warning, train: 1 impression has an id" in said
    assert "Warning: dev begins at" in said
    module = MindDataModule(str(tmp_path), plm=str(plm_dir))
    module.setup("fit")
    assert module.describe().count("Warning") == 2
