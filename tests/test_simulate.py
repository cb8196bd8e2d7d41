import json
from pathlib import Path

import numpy as np
import pytest

from newsrec.data.mind import open_mind
from newsrec.data.simulate import simulate
from newsrec.errors import UserError
from newsrec.evaluation.baselines import score_baseline
from newsrec.metrics import mind_metrics

DEMO = Path(__file__).parent.parent / "data" / "demo"


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".newsrec" not in path.parts
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "demo"
    simulate(root, "demo", seed=0)
    return root


def auc(data, scores):
    split = data.split("dev")
    return mind_metrics(scores, split.labels, split.candidates.offsets)["auc"]


def test_the_committed_demo_is_what_seed_0_writes(world):
    assert files(world) == files(DEMO)


def test_another_seed_writes_another_world(world, tmp_path):
    simulate(tmp_path / "other", "demo", seed=1)
    assert files(tmp_path / "other") != files(world)


def test_the_demo_is_small_and_has_the_promised_sizes(world):
    assert sum(len(content) for content in files(world).values()) < 3e6
    data = open_mind(world)
    assert [data.split(s).counts["impressions"] for s in ("train", "dev", "test")] == [
        2000,
        500,
        500,
    ]
    assert 900 <= len(data.news) <= 1100


def test_the_world_is_neither_trivial_nor_noise(world):
    data = open_mind(world)
    ceiling = json.loads((world / "world.json").read_text())["ceiling"]["dev"]["auc"]
    assert 0.75 <= ceiling <= 0.82
    for name in ("category", "tfidf"):
        assert 0.58 <= auc(data, score_baseline(name, data, "dev")) <= 0.66
    assert auc(data, score_baseline("popularity", data, "dev")) < 0.60


def test_candidates_are_shuffled_so_their_order_says_nothing(world):
    data = open_mind(world)
    split = data.split("train")
    constant = np.zeros(len(split.candidates.values), dtype=np.float32)
    result = mind_metrics(constant, split.labels, split.candidates.offsets)
    assert abs(result["auc"] - 0.5) < 0.02


def test_every_labelled_impression_has_a_click_and_a_skip_and_test_has_no_labels(world):
    data = open_mind(world)
    for name in ("train", "dev"):
        split = data.split(name)
        clicks = np.add.reduceat(split.labels, split.candidates.offsets[:-1])
        assert (clicks > 0).all()
        assert (clicks < split.candidates.lengths).all()
    assert data.split("test").labels is None


def test_the_awkward_rows_of_mind_are_there(world):
    data = open_mind(world)
    counts = data.split("train").counts
    assert counts["empty_histories"] > 0
    assert counts["unknown_history_news"] > 0
    assert counts["unknown_candidates"] > 0
    abstracts = data.news["abstract"].to_pylist()
    assert 0.02 < abstracts.count("") / len(abstracts) < 0.1
    titles = data.news["title"].to_pylist()
    assert any(title.startswith('"') for title in titles)
    assert len(set(titles)) < len(titles)


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=str(tmp_path)):
        simulate(tmp_path, "demo", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="demo"):
        simulate(tmp_path / "world", "gigantic", seed=0)
