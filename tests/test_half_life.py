"""Scores lowered by age, against loops over impressions and scikit-learn's AUC."""

import json
import math

import numpy as np
import pytest
from conftest import refused
from sklearn.metrics import roc_auc_score

from newsrec.__main__ import main
from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.evaluation.ages import age_scores, ages
from newsrec.evaluation.half_life import GRID, HalfLife
from newsrec.evaluation.intervals import paired_interval
from newsrec.evaluation.results import compute_results
from newsrec.report.differences import _half_life
from newsrec.report.notes import notes
from newsrec.report.page import html_page
from newsrec.report.terminal import half_life_table

INFO = {"scorer": "checkpoint", "selected_on": "dev", "trained_on": {}, "precision": "fp32"}


def by_loop(data, split):
    """Hours since each candidate was first a candidate anywhere; NaN for unknown news."""
    first = {}
    for part in data.splits.values():
        for row, time in enumerate(part.time):
            for news in part.candidates.values[slice(*part.candidates.offsets[row : row + 2])]:
                first[news] = min(first.get(news, time), time)
    part, hours = data.split(split), []
    for row, time in enumerate(part.time):
        for news in part.candidates.values[slice(*part.candidates.offsets[row : row + 2])]:
            old = (time - first[news]) / np.timedelta64(1, "h")
            hours.append(old if news >= FIRST_NEWS else math.nan)
    return np.array(hours)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_ages_count_from_the_first_impression(mind_dir, split):
    data = open_mind(mind_dir)
    expected = by_loop(data, split)
    np.testing.assert_allclose(ages(data, split), expected, rtol=1e-6)
    newest_first = np.nan_to_num(1 / (1 + expected), nan=0.0)
    np.testing.assert_allclose(age_scores(data, split), newest_first, rtol=1e-6)
    assert (expected[~np.isnan(expected)] >= 0).all()


def test_a_half_life_lowers_each_score_by_its_age(mind_dir):
    data = open_mind(mind_dir)
    scores = np.random.default_rng(0).normal(size=len(ages(data, "test"))).astype(np.float32)
    lowered, about = HalfLife.of(24).apply(data, "test", scores)
    for value, score, hours in zip(lowered, scores, by_loop(data, "test"), strict=True):
        term = 0 if math.isnan(hours) else math.log(2) * hours / 24
        assert value == pytest.approx(float(score) - term, abs=1e-5)
    assert about == {"hours": 24.0}


def test_auto_measures_each_half_life_and_takes_the_best(mind_dir):
    data = open_mind(mind_dir)
    part, old = data.split("dev"), by_loop(data, "dev")
    noise = np.random.default_rng(1).normal(size=len(old))
    scores = (2 * part.labels + noise + np.nan_to_num(old) / 2).astype(np.float32)
    lowered, about = HalfLife.of("auto").apply(data, "dev", scores)

    def aucs(values):
        found = []
        for begin, end in zip(part.candidates.offsets, part.candidates.offsets[1:], strict=False):
            labels = part.labels[begin:end]
            both = 0 < labels.sum() < len(labels)
            found.append(roc_auc_score(labels, values[begin:end]) if both else math.nan)
        return np.array(found)

    plain, means = aucs(scores), {}
    assert [line["hours"] for line in about["measured"]] == list(GRID)
    for line in about["measured"]:
        term = math.log(2) * np.nan_to_num(old) / line["hours"]
        own = aucs(scores - term)
        mean, low, high = paired_interval(own, plain, part.user)
        assert line["auc"] == pytest.approx(np.nanmean(own), abs=1e-6)
        assert line["auc_difference"] == pytest.approx(mean, abs=1e-6)
        assert line["auc_difference_interval"] == pytest.approx([low, high], abs=1e-6)
        means[line["hours"]] = mean
    assert about["hours"] == max(means, key=means.get)
    assert means[about["hours"]] > 0
    expected = scores - math.log(2) * np.nan_to_num(old) / about["hours"]
    np.testing.assert_allclose(lowered, expected, atol=1e-4)
    results = compute_results(data, "dev", lowered)
    best = next(line for line in about["measured"] if line["hours"] == about["hours"])
    assert results.metrics["auc"] == pytest.approx(best["auc"], abs=1e-9)
    assert half_life_table(about).row_count == len(GRID)
    metrics = results.metrics | INFO | {"half_life": about, "data_fingerprint": "x"}
    page = html_page("x", metrics, None, [], None)
    assert "By half-life" in page
    assert all(f"<td>{hours:g} h</td>" in page for hours in GRID)


def test_auto_keeps_the_scores_if_no_half_life_is_better(mind_dir):
    data = open_mind(mind_dir)
    scores = 1e4 * data.split("dev").labels
    lowered, about = HalfLife.of("auto").apply(data, "dev", scores)
    assert lowered is scores
    assert about["hours"] is None
    assert max(line["auc_difference"] for line in about["measured"]) <= 0


def test_options_are_read_and_refused(mind_dir):
    assert HalfLife.of(None) is None
    assert HalfLife.of("24") == HalfLife.of(24.0) == HalfLife(24.0)
    for value in ("0", "-1", "nan", "inf", "day", ""):
        with pytest.raises(UserError, match="--half_life is "):
            HalfLife.of(value)
    data = open_mind(mind_dir)
    HalfLife.of("auto").check(data, "dev")
    HalfLife.of(24).check(data, "test")
    with pytest.raises(UserError, match=r"test has no labels\. Give --half_life the number"):
        HalfLife.of("auto").check(data, "test")


def test_a_note_says_what_was_done():
    metrics = {"split": "dev", "trained_on": {}, "selected_on": None}
    for about, said, beside in (
        ({"hours": 24.0}, "Scores are lowered by age, with a half-life of 24 h.", "of 24 h"),
        ({"hours": 1.5, "chosen_on": "dev"}, "of 1.5 h, the best on dev itself: ex", "of 1.5 h"),
        ({"hours": None, "chosen_on": "dev"}, "No half-life has a higher AUC on dev", "as others"),
    ):
        (line,) = notes(metrics | {"half_life": about})
        assert said in line
        assert beside in _half_life(about)
    assert _half_life(None) == "treats them as others"


def test_the_command_refuses_a_half_life_without_a_meaning(capsys):
    place = ("--data.root=x", "--output=y", "--split=dev")
    said = refused(capsys, "evaluate", "--scorer=recent", "--half_life=24", *place)
    assert "the baseline recent are not" in said
    said = refused(capsys, "evaluate", "--ckpt_path=x", "--half_life=soon", *place)
    assert "--half_life is soon; give a number of hours above 0, such as 24, or auto." in said


@pytest.mark.slow
def test_evaluate_lowers_scores_and_records_it(served, tmp_path, capsys):
    command = ["evaluate", f"--ckpt_path={served.best}", f"--data.root={served.without_test}",
               "--split=dev", "--trainer.accelerator=cpu", "--baselines=false"]  # fmt: skip
    main([*command, f"--output={tmp_path / 'auto'}", "--half_life=auto"])
    assert "half-life" in capsys.readouterr().out
    about = json.loads((tmp_path / "auto" / "metrics.json").read_text())["half_life"]
    assert about["chosen_on"] == "dev"
    main([*command, f"--output={tmp_path / 'fixed'}", "--half_life=2", "--scores=true"])
    metrics = json.loads((tmp_path / "fixed" / "metrics.json").read_text())
    assert metrics["half_life"] == {"hours": 2.0}
    data = open_mind(served.without_test)
    expected = compute_results(data, "dev", HalfLife(2.0).apply(data, "dev", served.scores)[0])
    assert metrics["auc"] == pytest.approx(expected.metrics["auc"], abs=1e-9)
    assert "by a rule for age" in (tmp_path / "fixed" / "report.html").read_text()
