import itertools
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from beyond_worlds import distance, random_data, ranked_shares

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.evaluation import error_analysis
from newsrec.evaluation.beyond_lists import list_distances
from newsrec.evaluation.error_analysis import (
    EDGES,
    drift,
    reliability,
    weakest_groups,
    worst_impressions,
)
from newsrec.evaluation.intervals import paired_interval
from newsrec.evaluation.runs import read_run
from newsrec.evaluation.scoring import Scored
from newsrec.evaluation.slices import Slice
from newsrec.metrics import impression_metrics
from newsrec.report.error_analysis import error_notes
from newsrec.report.evaluate import evaluate


def test_groups_are_sorted_by_the_paired_difference():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 60, 400)
    own, other = rng.random(400), rng.random(400)
    own[::9] = other[::9] = np.nan
    slices = {
        "half": Slice(("a", "b", "empty"), (np.arange(400) % 2).astype(np.int8)),
        "few": Slice(("x", "y"), np.where(users < 5, 1, 0).astype(np.int8)),
        "one": Slice(("all",), np.zeros(400, np.int8)),
        "some": Slice(("u", "v"), np.where(np.arange(400) < 200, 1, -1).astype(np.int8)),
    }
    found = weakest_groups(slices, own, other, users)
    assert {(line["slice"], line["group"]) for line in found} == {
        ("half", "a"), ("half", "b"), ("few", "x"),
    }  # fmt: skip
    for line in found:
        groups, code = slices[line["slice"]]
        inside = (code == groups.index(line["group"])) & ~np.isnan(own)
        mean, low, high = paired_interval(own[inside], other[inside], users[inside])
        assert line["difference"] == pytest.approx(mean)
        assert line["interval"] == pytest.approx([low, high])
        assert line["impressions"] == inside.sum()
    assert [line["difference"] for line in found] == sorted(line["difference"] for line in found)


def test_drift_is_the_slope_of_a_line_with_an_error_by_user():
    rng = np.random.default_rng(1)
    days, users = rng.integers(0, 6, 300), rng.integers(0, 40, 300)
    time = np.datetime64("2019-11-09T05:00:00") + days * 86400 + rng.integers(0, 3600, 300)
    values = 0.7 + 0.01 * days + rng.normal(0, 0.05, 40)[users] * days + rng.normal(0, 0.1, 300)
    found = drift(np.append(values, np.nan), np.append(time, time[:1]), np.append(users, 99))
    slope, start = np.polyfit(days, values, 1)
    assert found["days"] == 6
    assert found["slope"] == pytest.approx(slope)
    away = days - days.mean()
    rest = values - start - slope * days
    variance = sum((away * rest)[users == user].sum() ** 2 for user in range(40))
    reach = 2.0227 * np.sqrt(variance * 40 / 39) / (away**2).sum()
    assert found["interval"] == pytest.approx([slope - reach, slope + reach], abs=1e-5)
    assert drift(values, time[:1].repeat(300), users) is None
    assert drift(values, time, np.zeros(300, int)) is None


def test_reliability_is_that_of_a_loop(monkeypatch):
    data, scores, _ = random_data(300, 50, 2, largest=30)
    split = data.split("train")
    scores = scores.astype(np.float64) * 6
    labels = split.labels.copy()
    labels[split.candidates.offsets[0] : split.candidates.offsets[1]] = 1  # no skipped candidate
    labels[split.candidates.offsets[1:9]] = 1  # some with two clicks
    split = split._replace(labels=labels)
    expected, clicked = [], []
    for begin, end in itertools.pairwise(split.candidates.offsets):
        clicks = int(labels[begin:end].sum())
        if 0 < clicks < end - begin:
            odds = np.exp(scores[begin:end])
            expected += np.minimum(clicks * odds / odds.sum(), 1).tolist()
            clicked += labels[begin:end].tolist()
    expected, clicked = np.array(expected), np.array(clicked)
    monkeypatch.setattr(error_analysis, "STEP", 37)
    found = reliability(split, scores)
    off = 0.0
    for line in found["bins"]:
        last = line["to"] == 1
        inside = (expected >= line["from"]) & ((expected < line["to"]) | last)
        assert line["candidates"] == inside.sum()
        assert line["expected"] == pytest.approx(expected[inside].mean())
        assert line["clicked"] == pytest.approx(clicked[inside].mean())
        off += abs(clicked[inside].sum() - expected[inside].sum())
    assert found["ece"] == pytest.approx(off / len(expected))
    assert sum(line["candidates"] for line in found["bins"]) == len(expected)
    nothing = split._replace(labels=np.zeros_like(labels))
    assert reliability(nothing, scores) is None


def test_clicks_drawn_from_the_softmax_are_off_by_chance_alone():
    data, _, _ = random_data(4000, 50, 2, largest=30)
    split = data.split("train")
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 2, len(split.labels))
    labels = np.zeros_like(split.labels)
    for begin, end in itertools.pairwise(split.candidates.offsets):
        labels[begin + np.argmax(scores[begin:end] + rng.gumbel(size=end - begin))] = 1
    right = reliability(split._replace(labels=labels), scores)
    assert right["ece"] < 2 * right["ece_by_chance"]
    wrong = reliability(split._replace(labels=labels), scores * 3)
    assert wrong["ece"] > 5 * wrong["ece_by_chance"]
    assert len(right["bins"]) == len(EDGES) - 1


def test_evaluate_lists_what_the_best_baseline_ranks_better(mind_dir, tmp_path):
    data = open_mind(mind_dir)
    part = data.split("dev")
    scores = np.random.default_rng(0).normal(size=len(part.candidates.values)).astype(np.float32)
    vectors = np.zeros((data.num_news, 2), np.float32)
    info = {"selected_on": None, "trained_on": {}, "precision": None}
    scored = Scored("some", data, scores, None, info, model_vectors=vectors)
    found = evaluate(lambda: scored, mind_dir, "dev", tmp_path / "x").metrics
    errors, baselines = found["errors"], found["baselines"]
    assert errors["baseline"] == max(baselines, key=lambda name: baselines[name]["auc"])
    aucs = pq.read_table(tmp_path / "x" / "per_impression.parquet").to_pandas()
    of = aucs.set_index("impression_id")["auc"]
    losses = [line["auc"] - line["baseline_auc"] for line in errors["impressions"]]
    assert max(losses) < 0
    assert all(line["auc"] == of[line["impression_id"]] for line in errors["impressions"])
    page = (tmp_path / "x" / "report.html").read_text()
    assert page.count('class="card example"') == 10 + len(losses)
    assert "<h3>Click probabilities</h3>" in page
    assert all(note.replace("'", "&#39;") in page for note in error_notes(errors))
    lone = evaluate(lambda: scored, mind_dir, "dev", None, baselines=False).metrics["errors"]
    assert set(lone) == {"drift", "reliability"}


def test_losses_are_measured_by_what_chance_does_to_so_many_candidates():
    rng = np.random.default_rng(3)
    data, _, _ = random_data(400, 50, 2, largest=30)
    split = data.split("train")
    split = split._replace(labels=(rng.random(len(split.labels)) < 0.3).astype(np.int8))
    own, other = (
        impression_metrics(rng.random(len(split.labels)), split.labels, split.candidates.offsets)
        for _ in range(2)
    )
    found = worst_impressions(own.of("auc"), other.of("auc"), split)
    losses = {}
    for row, (begin, end) in enumerate(itertools.pairwise(split.candidates.offsets)):
        clicked = int(split.labels[begin:end].sum())
        skipped = int(end - begin) - clicked
        apart = own.of("auc")[row] - other.of("auc")[row]
        if clicked and skipped and apart < 0:
            spread = math.sqrt((clicked + skipped + 1) / (12 * clicked * skipped))
            losses[row] = apart / spread
    assert found.tolist() == sorted(losses, key=losses.get)[:10]
    labels = np.array([True] * 3 + [False] * 5)  # the spread is that of random orders
    scores = rng.random((20_000, 8))
    drawn = impression_metrics(scores.ravel(), np.tile(labels, 20_000), np.arange(0, 160_001, 8))
    assert drawn.of("auc").std() == pytest.approx(math.sqrt(9 / (12 * 15)), rel=0.02)
    assert len(worst_impressions(own.of("auc"), own.of("auc"), split)) == 0


def test_the_lists_of_runs_are_compared_rank_by_rank(mind_dir, tmp_path, capsys):
    base = [f"--data.root={mind_dir}", "--split=dev", "--trainer.accelerator=cpu",
            "--baselines=false"]  # fmt: skip
    names = ("recent", "random")
    for name in names:
        main(["evaluate", f"--scorer={name}", *base, f"--output={tmp_path / name}"])
    one, other = (read_run(tmp_path / name) for name in names)
    expected = []
    for a, b in zip(one.top.tolist(), other.top.tolist(), strict=True):
        shares = [
            ranked_shares(*zip(*[(n, r) for r, n in enumerate(top, 1) if n > 1], strict=True))
            for top in (a, b)
        ]
        expected.append(distance(*shares))
    found = list_distances([one], [other])
    assert found == {"between": pytest.approx(np.mean(expected)), "a": None, "b": None}
    same = list_distances([one, one], [one])
    assert same == {"between": 0, "a": 0, "b": None}
    main(["compare", *(str(tmp_path / name) for name in names)])
    said = "Distance of the first 10 news (0: equal; 1: none in common): A and B "
    assert f"{said}{found['between']:.3f}." in " ".join(capsys.readouterr().out.split())
    bare = one._replace(top=None)
    assert list_distances([bare], [other]) is None
    unknown = one._replace(top=np.minimum(one.top, 1))
    assert list_distances([unknown], [other]) is None
    assert json.dumps(found)
