import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from newsrec.data.mind import open_mind
from newsrec.evaluation.evaluate import evaluate_scores
from newsrec.evaluation.report import counts, metrics_table, read_ceiling, slices_table
from newsrec.metrics import METRICS


def scores_of(split):
    return np.random.default_rng(0).normal(size=len(split.candidates.values)).astype(np.float32)


def test_the_auc_is_the_mean_over_impressions_with_both_classes(mind_dir):
    data = open_mind(mind_dir)
    split = data.split("dev")
    scores = scores_of(split)
    offsets = split.candidates.offsets
    values = []
    for begin, end in itertools.pairwise(offsets):
        labels = split.labels[begin:end]
        if 0 < labels.sum() < len(labels):
            values.append(roc_auc_score(labels, scores[begin:end]))
    result = evaluate_scores(data, "dev", scores)
    assert result["auc"] == pytest.approx(np.mean(values), abs=1e-12)
    assert result["evaluated"] == len(values)
    assert result["single_class"] == len(offsets) - 1 - len(values) > 0
    for name in METRICS:
        low, high = result["intervals"][name]
        assert low <= result[name] <= high


def test_a_split_without_labels_has_counts_and_no_metrics(mind_dir):
    data = open_mind(mind_dir)
    result = evaluate_scores(data, "test", scores_of(data.split("test")))
    assert result["impressions"] == len(data.split("test").history)
    assert not set(METRICS) & set(result)
    assert "intervals" not in result


def test_what_is_reported_is_plain_json(mind_dir):
    data = open_mind(mind_dir)
    result = evaluate_scores(data, "dev", scores_of(data.split("dev")))
    assert json.loads(json.dumps(result)) == result


def test_the_table_has_a_row_for_each_metric(mind_dir):
    data = open_mind(mind_dir)
    result = evaluate_scores(data, "dev", scores_of(data.split("dev")))
    table = metrics_table("dev", result)
    assert list(table.columns[0].cells) == ["AUC", "MRR", "nDCG@5", "nDCG@10"]
    assert next(iter(table.columns[1].cells)) == f"{result['auc']:.4f}"


def test_a_group_of_few_readers_has_no_interval_in_the_table(mind_dir):
    groups = {
        "many": {"users": 20, "evaluated": 60, "auc": 0.5, "intervals": {"auc": [0.4, 0.6]}},
        "few": {"users": 19, "evaluated": 60, "auc": 0.7, "intervals": {"auc": [0.7, 0.7]}},
    }
    table = slices_table({"slices": {"user": groups}})
    assert list(table.columns[3].cells) == ["0.5000", "0.7000"]
    assert list(table.columns[4].cells) == ["0.4000 to 0.6000", "-"]
    data = open_mind(mind_dir)
    result = evaluate_scores(data, "dev", scores_of(data.split("dev")))
    assert result["users"] == 7
    assert "7 readers are too few to trust them." in counts(result)
    assert not any("too few" in line for line in counts(result | {"users": 20}))


def test_only_a_simulated_world_has_a_ceiling(mind_dir):
    assert read_ceiling(mind_dir, "dev") is None
    (mind_dir / "world.json").write_text('{"ceiling": {"dev": {"auc": 0.8}}}')
    assert read_ceiling(mind_dir, "dev") == {"auc": 0.8}
    assert read_ceiling(mind_dir, "test") is None
