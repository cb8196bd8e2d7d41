"""Scores that know the future: found by a count in the data, and by labels that must not matter."""

import itertools

import checkpoints
import numpy as np
import pytest
from conftest import news_row, write_mind

from newsrec.__main__ import main
from newsrec.data import leaks
from newsrec.data.dataset import open_mind
from newsrec.data.leaks import SUSPECT, count_in_history
from newsrec.evaluation.baselines import BASELINES, recent_scores, score_baseline
from newsrec.evaluation.scoring import score_checkpoints


def by_loop(split):
    counts = [0, 0, 0, 0]
    for row, (begin, end) in enumerate(itertools.pairwise(split.candidates.offsets)):
        history = split.histories.values[slice(*split.histories.offsets[split.history[row] :][:2])]
        for place in range(begin, end):
            inside = split.candidates.values[place] in history
            clicked = split.labels is not None and split.labels[place] == 1
            for i, true in enumerate((True, inside, clicked, clicked and inside)):
                counts[i] += bool(true)
    return counts


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_candidates_in_the_history_are_those_of_a_loop(mind_dir, split):
    part = open_mind(mind_dir).split(split)
    assert list(count_in_history(part)) == by_loop(part)
    assert count_in_history(part).candidates_inside > 0


def test_a_large_split_is_looked_at_in_part(mind_dir, monkeypatch):
    part = open_mind(mind_dir).split("train")
    monkeypatch.setattr(leaks, "MOST_IMPRESSIONS", 5)
    found = count_in_history(part)
    sizes = part.candidates.lengths[[0, 10, 20, 30, 40]]
    assert found.candidates == sizes.sum()


def made_world(root, future):
    """Users click at random; with ``future`` their histories also hold these very clicks."""
    rng = np.random.default_rng(0)
    news = [news_row(f"N{i}", "a", "b", f"title {i}", "") for i in range(500)]
    behaviors = {"train": [], "dev": []}
    for split, rows in behaviors.items():
        for number in range(60):
            shown = rng.choice(500, 6, replace=False)
            history = [f"N{i}" for i in rng.choice(500, 5, replace=False)]
            if future:
                history.insert(2, f"N{shown[0]}")
            day = 14 if split == "train" else 15
            words = [f"N{i}-{int(i == shown[0])}" for i in rng.permutation(shown)]
            row = [str(number), f"U{number % 9}", f"11/{day}/2019 9:05:58 AM"]
            rows.append([*row, " ".join(history), " ".join(words)])
    return write_mind(root, dict.fromkeys(behaviors, news), behaviors)


def test_prepare_warns_of_histories_that_hold_the_clicks_to_be_predicted(tmp_path, capsys):
    main(["prepare", "--data.root", str(made_world(tmp_path / "honest", False))])
    assert "Warning" not in capsys.readouterr().out
    root = made_world(tmp_path / "future", True)
    main(["prepare", "--data.root", str(root)])
    said = " ".join(capsys.readouterr().out.split())
    for name in ("train", "dev"):
        assert f"Warning, {name}: 100.0% of the clicks are in the history of their own" in said
        found = count_in_history(open_mind(root).split(name))
        assert found.clicks_inside == found.clicks == 60
        assert f"{found.candidates_inside / found.candidates:.2%}" in said


def test_the_share_that_warns_is_the_documented_one(mind_dir):
    part = open_mind(mind_dir).split("dev")
    found = count_in_history(part)
    at = found._replace(clicks=100, clicks_inside=round(100 * SUSPECT))
    assert not at.suspect
    assert at._replace(clicks_inside=at.clicks_inside + 1).suspect
    assert not at._replace(clicks=0, clicks_inside=0).suspect


def with_labels(data, change):
    """Return the data with other labels in dev."""
    part = data.split("dev")
    return data._replace(splits=data.splits | {"dev": part._replace(labels=change(part))})


def flipped(part):
    return 1 - np.asarray(part.labels)


def shuffled(part):
    return np.random.default_rng(1).permutation(np.asarray(part.labels))


def reads_labels(score, data):
    """Return whether the scores of dev depend on the labels of dev."""
    before = score(data)
    return any(
        not np.array_equal(before, score(with_labels(data, change)))
        for change in (flipped, shuffled)
    )


@pytest.mark.parametrize("name", sorted({*BASELINES} - {"recent"}))
def test_the_labels_of_dev_move_no_score_of_a_baseline(name, mind_dir):
    data = open_mind(mind_dir)
    vectors = np.random.default_rng(0).normal(size=(data.num_news, 4)).astype(np.float32)
    assert not reads_labels(
        lambda data: score_baseline(name, data, "dev", news_vectors=vectors), data
    )


def moved_by_the_present(score, data):
    """Return whether labels of an impression, or of later ones, move the scores of earlier ones."""
    part = data.split("dev")
    for time in np.unique(part.time):
        late = np.repeat(part.time >= time, part.candidates.lengths)
        early = np.repeat(part.time <= time, part.candidates.lengths)
        other = with_labels(
            data, lambda part, late=late: np.where(late, 1 - part.labels, part.labels)
        )
        if not np.array_equal(score(data)[early], score(other)[early]):
            return True
    return False


def test_recent_popularity_reads_the_labels_of_earlier_impressions_alone(mind_dir):
    data = open_mind(mind_dir)
    assert reads_labels(lambda data: recent_scores(data, "dev"), data)
    assert not moved_by_the_present(lambda data: recent_scores(data, "dev"), data)


def test_a_baseline_that_counts_the_clicks_of_dev_is_found(mind_dir):
    """What the tests above would miss is not there to be missed."""

    def leaky(data):
        part = data.split("dev")
        clicks = np.bincount(part.candidates.values[part.labels == 1], minlength=data.num_news)
        return clicks[part.candidates.values].astype(np.float32)

    data = open_mind(mind_dir)
    assert reads_labels(leaky, data)
    assert moved_by_the_present(leaky, data)


def test_the_labels_of_dev_move_no_score_of_a_model(mind_dir, plm_dir, tmp_path):
    path = checkpoints.train(tmp_path / "trained", plm_dir)
    behaviors = mind_dir / "dev" / "behaviors.tsv"
    whole, found = behaviors.read_text(), []
    for change in (
        lambda text: text,
        lambda text: text.replace("-1", "-x").replace("-0", "-1").replace("-x", "-0"),
        lambda text: text.replace("-1", "").replace("-0", ""),
    ):
        behaviors.write_text(change(whole))
        data = open_mind(mind_dir).split("dev")
        trainer = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
        scored = score_checkpoints([path], mind_dir, "dev", trainer=trainer, with_means=False)
        found.append((data.labels, scored.scores))
    (first, scores), (second, other), (none, hidden) = found
    assert np.array_equal(first, 1 - second)
    assert none is None
    np.testing.assert_array_equal(scores, other)
    np.testing.assert_array_equal(scores, hidden)
