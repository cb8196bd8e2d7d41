import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.evaluation.results import evaluate_scores
from newsrec.metrics import METRICS
from newsrec.report.notes import counts
from newsrec.report.terminal import metrics_table, read_ceiling, read_oracles, slices_table
from newsrec.simulation.oracles import ORACLES


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
    table = metrics_table(result)
    assert [*map(str, table.columns[0].cells)] == ["AUC", "MRR", "nDCG@5", "nDCG@10"]
    assert str(next(iter(table.columns[1].cells))) == f"{result['auc']:.4f}"


def test_a_group_of_few_users_has_no_interval_in_the_table(mind_dir):
    groups = {
        "many": {"users": 20, "evaluated": 60, "auc": 0.5, "intervals": {"auc": [0.4, 0.6]}},
        "few": {"users": 19, "evaluated": 60, "auc": 0.7, "intervals": {"auc": [0.7, 0.7]}},
    }
    table = slices_table({"slices": {"user": groups}})
    assert [*map(str, table.columns[3].cells)] == ["0.5000", "0.7000"]
    assert [*map(str, table.columns[4].cells)] == ["0.4000 to 0.6000", "-"]
    data = open_mind(mind_dir)
    result = evaluate_scores(data, "dev", scores_of(data.split("dev")))
    assert result["users"] == 7
    assert "7 users are too few for intervals that can be trusted." in counts(result)
    assert not any("too few" in line for line in counts(result | {"users": 20}))


def test_only_a_simulated_world_has_a_ceiling(mind_dir):
    assert read_ceiling(mind_dir, "dev") is None
    ceiling = dict.fromkeys(METRICS, 0.8)
    (mind_dir / "world.json").write_text(json.dumps({"ceiling": {"dev": ceiling}}))
    assert read_ceiling(mind_dir, "dev") == ceiling
    assert read_ceiling(mind_dir, "test") is None
    assert read_oracles(mind_dir, "dev") == {}


def test_a_worlds_oracles_are_shown(mind_dir, tmp_path, capsys):
    oracles = {"mean_click": 0.7, "no_drift": 0.75, "no": "text", "yes": True}
    (mind_dir / "world.json").write_text(json.dumps({"oracles": {"dev": oracles}}))
    assert read_oracles(mind_dir, "dev") == {"mean_click": 0.7, "no_drift": 0.75}
    assert read_oracles(mind_dir, "test") == {}
    main(["evaluate", "--scorer=random", f"--data.root={mind_dir}", "--split=dev",
          f"--output={tmp_path / 'x'}", "--trainer.accelerator=cpu",
          "--baselines=false"])  # fmt: skip
    said = "no_drift 0.7500, mean_click 0.7000."
    assert said in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    assert page.index(">no_drift<") < page.index("0.7500") < page.index(">mean_click<")
    assert ORACLES["no_drift"] in page


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"ceiling": "\xff"}',
    "a list": b"[]",
    "nested deeply": b"[" * 100_000,
    "no splits": b'{"ceiling": 1}',
    "no metrics": b'{"ceiling": {"dev": 0.8}}',
    "a metric missing": b'{"ceiling": {"dev": {"auc": 0.8}}}',
    "text for a number": b'{"ceiling": {"dev": {"auc": "x", "mrr": 1, "ndcg@5": 1, "ndcg@10": 1}}}',
    "NaN": b'{"ceiling": {"dev": {"auc": NaN, "mrr": 1, "ndcg@5": 1, "ndcg@10": 1}}}',
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_world_costs_a_warning_and_no_evaluation(kind, mind_dir, tmp_path, caplog):
    (mind_dir / "world.json").write_bytes(MALFORMED[kind])
    with caplog.at_level("WARNING", "newsrec"):
        main(["evaluate", "--scorer=random", f"--data.root={mind_dir}", "--split=dev",
              f"--output={tmp_path / 'x'}", "--trainer.accelerator=cpu",
              "--baselines=false"])  # fmt: skip
    assert "auc" in json.loads((tmp_path / "x" / "metrics.json").read_text())
    (said,) = caplog.messages
    assert str(mind_dir / "world.json") in said


def test_what_is_optional_is_read_before_the_work(mind_dir, tmp_path, monkeypatch):
    (mind_dir / "world.json").write_text("{")
    done = []
    monkeypatch.setattr("newsrec.report.evaluate.read_ceiling", lambda *_: done.append("ceiling"))

    def score(*_, **__):
        done.append("scores")
        raise UserError("enough")

    monkeypatch.setattr("newsrec.evaluation.scoring.score_baseline", score)
    with pytest.raises(SystemExit):
        main(["evaluate", "--scorer=random", f"--data.root={mind_dir}", "--split=dev",
              f"--output={tmp_path / 'x'}", "--trainer.accelerator=cpu"])  # fmt: skip
    assert done == ["ceiling", "scores"]
