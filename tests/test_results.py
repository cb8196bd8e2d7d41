import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from test_splits import seen_by_loop

from newsrec.data.dataset import open_mind
from newsrec.evaluation.baselines import BASELINES, score_baseline
from newsrec.evaluation.intervals import mean_interval, paired_interval
from newsrec.evaluation.results import category_codes, compute_results, per_impression_table
from newsrec.metrics import METRICS, impression_metrics, mind_metrics
from newsrec.report.notes import counts, on_unseen
from newsrec.report.terminal import metrics_table


def scores_of(split, seed=0):
    return np.random.default_rng(seed).normal(size=len(split.candidates.values)).astype(np.float32)


@pytest.fixture
def data(mind_dir):
    return open_mind(mind_dir)


def test_each_impression_has_a_row_in_the_order_of_the_file(data, mind_dir, tmp_path):
    split = data.split("dev")
    results = compute_results(data, "dev", scores_of(split))
    pq.write_table(per_impression_table(data, "dev", results), tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    lines = (mind_dir / "dev" / "behaviors.tsv").read_text().splitlines()
    fields = [line.split("\t") for line in lines]
    assert table["impression_id"].type == pa.int64()
    assert table["user"].type == pa.string()
    assert table["impression_id"].to_pylist() == [int(field[0]) for field in fields]
    assert table["user"].to_pylist() == [field[1] for field in fields]
    values = impression_metrics(scores_of(split), split.labels, split.candidates.offsets)
    assert not values.valid.all()
    for name, row in zip(METRICS, values.values, strict=True):
        assert table[name].type == pa.float64()
        expected = [v if ok else None for v, ok in zip(row, values.valid, strict=True)]
        assert table[name].to_pylist() == expected


def test_groups_stand_in_the_table_as_text_and_add_up_to_the_slices(data):
    split = data.split("dev")
    results = compute_results(data, "dev", scores_of(split))
    table = per_impression_table(data, "dev", results)
    names = [name for name in table.column_names if name.startswith("slice/")]
    assert names == [f"slice/{name}" for name in results.metrics["slices"]]
    auc = np.array(table["auc"].to_pylist(), dtype=float)
    for name in names:
        assert pa.types.is_dictionary(table[name].type)
        assert table[name].type.value_type == pa.string()
        group = np.array(table[name].to_pylist(), dtype=object)
        for key, row in results.metrics["slices"][name.removeprefix("slice/")].items():
            assert row["impressions"] == (group == key).sum()
            if row["evaluated"]:
                assert row["auc"] == pytest.approx(np.nanmean(auc[group == key]))


def test_baselines_stand_beside_with_paired_differences(data):
    split = data.split("dev")
    vectors = np.random.default_rng(3).normal(size=(data.num_news, 4)).astype(np.float32)
    others = {name: score_baseline(name, data, "dev", news_vectors=vectors) for name in BASELINES}
    found = compute_results(data, "dev", scores_of(split), others).metrics
    offsets = split.candidates.offsets
    own = impression_metrics(scores_of(split), split.labels, offsets)
    assert list(found["baselines"]) == list(BASELINES)
    for name, row in found["baselines"].items():
        expected = mind_metrics(others[name], split.labels, offsets)
        assert {metric: row[metric] for metric in METRICS} == {m: expected[m] for m in METRICS}
        other = impression_metrics(others[name], split.labels, offsets)
        mean, low, high = paired_interval(own.of("auc"), other.of("auc"), split.user)
        assert row["auc_difference"] == pytest.approx(mean)
        assert row["auc_difference_interval"] == pytest.approx([low, high])
        interval = mean_interval(other.of("auc"), split.user)
        assert row["intervals"]["auc"] == pytest.approx(interval.tolist())
    alone = compute_results(data, "dev", scores_of(split)).metrics
    for metric in METRICS:  # what stands beside it does not move its intervals
        assert found["intervals"][metric] == pytest.approx(alone["intervals"][metric], abs=1e-12)


def test_metrics_of_unseen_news_are_those_of_a_loop(data):
    """With the candidates alone that train neither shows nor has in a history."""
    split, train = data.split("dev"), data.split("train")
    seen = seen_by_loop(train)
    vectors = np.random.default_rng(3).normal(size=(data.num_news, 4)).astype(np.float32)
    others = {name: score_baseline(name, data, "dev", news_vectors=vectors) for name in BASELINES}
    found = compute_results(data, "dev", scores_of(split), others).metrics["unseen"]
    for name, scores in ({"own": scores_of(split)} | others).items():
        aucs, users, shown = [], [], 0
        for row, (begin, end) in enumerate(itertools.pairwise(split.candidates.offsets)):
            news = split.candidates.values[begin:end]
            new = [
                i for i, n in zip(range(begin, end), news, strict=True) if n > 1 and n not in seen
            ]
            if len(set(split.labels[new])) == 2:
                shown += len(new)
                rank = np.argsort(np.argsort(-scores[new], kind="stable"))
                aucs.append(roc_auc_score(split.labels[new], -rank))
                users.append(split.user[row])
        own = found if name == "own" else found["baselines"][name]
        assert own["auc"] == pytest.approx(np.mean(aucs))
    assert found["impressions"] == len(aucs) > 2
    assert found["candidates"] == shown
    assert found["users"] == len(set(users))
    low, high = found["intervals"]["auc"]
    assert low <= found["auc"] <= high
    assert found["baselines"]["popularity"]["auc"] < 0.9  # none was clicked in train: ties


def test_where_all_news_is_seen_there_is_no_metric_of_unseen_news(data):
    found = compute_results(data, "train", scores_of(data.split("train"))).metrics
    assert found["unseen"] == {"impressions": 0, "candidates": 0, "users": 0}
    assert on_unseen(found) == [
        "No impression has both a clicked and a skipped candidate that train has not seen."
    ]
    assert len(metrics_table(found).columns) == 3
    assert "unseen" not in compute_results(data, "test", scores_of(data.split("test"))).metrics
    lone = data._replace(splits={"dev": data.split("dev")})
    alone = compute_results(lone, "dev", scores_of(data.split("dev"))).metrics
    assert "unseen" not in alone
    assert on_unseen(alone) == []


def test_the_table_has_the_metrics_of_unseen_news_beside_the_total(data):
    found = compute_results(data, "dev", scores_of(data.split("dev"))).metrics
    columns = [[str(cell) for cell in c.cells] for c in metrics_table(found).columns]
    assert columns[1] == [f"{found[name]:.4f}" for name in METRICS]
    assert columns[3] == [f"{found['unseen'][name]:.4f}" for name in METRICS]
    assert columns[3] != columns[1]
    (line,) = on_unseen(found)
    assert f"{found['unseen']['candidates']} candidates that train neither shows nor" in line
    assert line in counts(found)


def test_the_entropy_of_categories_needs_no_labels(data):
    for name in ("dev", "test"):
        split = data.split(name)
        scores = scores_of(split)
        entropies = []
        codes = category_codes(data)
        for begin, end in itertools.pairwise(split.candidates.offsets):
            order = np.argsort(-scores[begin:end], kind="stable")[:10]
            top = codes[split.candidates.values[begin:end][order]].tolist()
            shares = [top.count(c) / len(top) for c in set(top)]
            entropies.append(-sum(p * np.log2(p) for p in shares))
        found = compute_results(data, name, scores).metrics["category_entropy@10"]
        assert found == pytest.approx(np.mean(entropies))
        assert found > 0


def test_the_unknown_news_item_is_of_a_category_of_its_own(data):
    codes = category_codes(data)
    assert len(codes) == data.num_news
    assert codes[1] not in codes[2:]
