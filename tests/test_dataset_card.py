"""``datasets.load_dataset`` reads simulated worlds by their cards."""

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from newsrec.simulation.dataset_card import write_card
from newsrec.simulation.simulate import simulate


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The same world in both formats."""
    root = tmp_path_factory.mktemp("worlds")
    for file_format in ("mind", "parquet"):
        simulate(root / file_format, seed=5, file_format=file_format)
    return root


@pytest.fixture
def load(worlds, tmp_path):
    def load(file_format, name=None):
        return datasets.load_dataset(
            str(worlds / file_format), name, cache_dir=str(tmp_path / "cache")
        )

    return load


def lines(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["impressions", "unlabelled", "news"])
def test_parquet_is_read_with_its_types(worlds, load, name):
    found = load("parquet", name)
    splits = {"impressions": ["train", "dev"], "unlabelled": ["test"]}.get(name)
    assert list(found) == (splits or ["train", "dev", "test"])
    stem = "news" if name == "news" else "impressions"
    for split, rows in found.items():
        table = pq.read_table(worlds / "parquet" / split / f"{stem}.parquet")
        assert rows.column_names == table.column_names
        assert rows[:] == table.to_pydict()


def test_impressions_are_what_is_read_without_a_name(load):
    found = load("parquet")
    assert list(found) == ["train", "dev"]
    assert found["train"].features["labels"] == datasets.List(datasets.Value("bool"))
    assert found["train"].features["time"] == datasets.Value("timestamp[s]")


@pytest.mark.parametrize("name", ["impressions", "news"])
def test_minds_files_are_read_to_the_letter(worlds, load, name):
    found = load("mind", name)
    assert list(found) == ["train", "dev", "test"]
    stem = "news" if name == "news" else "behaviors"
    for split, rows in found.items():
        expected = lines(worlds / "mind" / split / f"{stem}.tsv")
        assert [[str(value) for value in row.values()] for row in rows] == expected


def test_the_card_says_how_the_world_was_made_and_what_it_is(tmp_path, worlds):
    text = (worlds / "parquet" / "README.md").read_text()
    assert "simulate --output DIR --preset demo --seed 5 --format parquet\n" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["size_categories"] == ["1K<n<10K"]
    splits = {"train": {"impressions": 10**7, "users": 3, "news": 2}}
    world = {"preset": "tastes", "seed": 1, "splits": splits, "ceiling": {"dev": {"auc": 0.75}}}
    write_card(tmp_path, world, "mind", tmp_path / "my news.tsv", ["drift", "position"], [])
    text = (tmp_path / "README.md").read_text()
    assert "--titles 'my news.tsv' --without drift position\n" in text
    assert "That of my news.tsv, whose titles" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["size_categories"]) == ("other", ["10M<n<100M"])
