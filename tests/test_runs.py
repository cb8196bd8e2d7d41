import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from newsrec import metrics
from newsrec.errors import UserError
from newsrec.evaluation.runs import METRICS, has_seed, pair, read_run


def write_run(folder, auc, users, slices=None, ids=None, dictionary=True, **about):
    """Write what ``evaluate`` does: AUC, user and groups of each impression, and what is known.

    An AUC of NaN is that of an impression without a click; other metrics are .1, .2 and .3 lower.
    """
    folder.mkdir(parents=True, exist_ok=True)
    auc = np.asarray(auc, dtype=float)
    columns = {
        "impression_id": pa.array(np.arange(1, len(auc) + 1) if ids is None else ids, pa.int64()),
        "user": pa.array([f"U{user}" for user in users]),
    }
    for step, name in enumerate(METRICS):
        columns[name] = pa.array(auc - 0.1 * step, mask=np.isnan(auc))
    for name, groups in (slices or {}).items():
        column = pa.array(groups, pa.string())
        columns[f"slice/{name}"] = column.dictionary_encode() if dictionary else column
    pq.write_table(pa.table(columns), folder / "per_impression.parquet")
    known = {
        "format": 1,
        "split": "dev",
        "window": "15 November",
        "data_fingerprint": "d1",
        "scorer": "checkpoint",
        "checkpoint_sha256": folder.name,
        "selected_on": "last_day",
        "trained_on": {"train": "9 to 14 November"},
        "auc": float(np.nanmean(auc)) if (~np.isnan(auc)).any() else float("nan"),
    }
    (folder / "metrics.json").write_text(json.dumps(known | about))
    return folder


def some_run(folder, **about):
    return write_run(folder, [0.5, 0.6, np.nan, 0.8], [1, 2, 2, 3], **about)


def test_the_metrics_are_those_that_are_computed():
    assert METRICS == metrics.METRICS


def test_impressions_with_a_click_and_a_skip_are_paired(tmp_path):
    groups = {"day": ["Mon", "Tue", "Tue", None]}
    a = read_run(some_run(tmp_path / "a", slices=groups))
    b = read_run(write_run(tmp_path / "b", [0.4, 0.6, np.nan, 0.9], [1, 2, 2, 3], groups))
    paired = pair([a], [b])
    assert paired.impressions == 4
    assert paired.users.tolist() == [0, 1, 2]
    np.testing.assert_allclose((paired.a - paired.b)[0], [[0.1, 0, -0.1]] * 4, atol=1e-12)
    assert paired.slices["day"].groups == ["Mon", "Tue"]
    assert paired.slices["day"].code.tolist() == [0, 1, -1]


def test_a_slice_keeps_the_order_that_its_file_lists(tmp_path):
    folder = some_run(tmp_path / "a")
    table = pq.read_table(folder / "per_impression.parquet")
    column = pa.DictionaryArray.from_arrays(
        pa.array([2, 0, 0, 1], pa.int8()), pa.array(["0", "1-5", "> 5", "never"])
    )
    pq.write_table(table.append_column("slice/x", column), folder / "per_impression.parquet")
    run = read_run(folder)
    found = pair([run], [run]).slices["x"]
    assert found.groups == ["0", "1-5", "> 5", "never"]
    assert found.code.tolist() == [2, 0, 1]


def test_groups_are_alike_however_encoded_and_left_out_if_not(tmp_path):
    one = {"same": list("xyxy"), "other": list("xxyy"), "more": list("xxxy")}
    a = read_run(some_run(tmp_path / "a", slices=one))
    two = {"same": list("xyxy"), "other": list("xyyy")}
    b = read_run(some_run(tmp_path / "b", slices=two, dictionary=False))
    paired = pair([a], [b])
    assert list(paired.slices) == ["same"]
    assert paired.unlike == ["more", "other"]


def test_only_checkpoints_have_a_seed(tmp_path):
    assert has_seed(read_run(some_run(tmp_path / "a")))
    assert not has_seed(read_run(some_run(tmp_path / "b", scorer="popularity")))


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing does not exist\. Give a folder that evaluate"):
        read_run(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file\. Give a folder"):
        read_run(tmp_path / "file")
    with pytest.raises(UserError, match=r"has no metrics\.json\. Give a folder"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"dev"', "\xff"])
def test_metrics_that_are_damaged_are_refused(tmp_path, text):
    folder = some_run(tmp_path / "a")
    (folder / "metrics.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"metrics\.json cannot be read: .*\. Evaluate again"):
        read_run(folder)


def test_a_split_without_labels_is_refused(tmp_path):
    folder = some_run(tmp_path / "a")
    (folder / "per_impression.parquet").unlink()
    (folder / "metrics.json").write_text('{"split": "test", "impressions": 4}')
    with pytest.raises(UserError, match=r"a: test has no labels.*--split dev"):
        read_run(folder)


def test_a_split_with_nothing_to_evaluate_is_refused(tmp_path):
    folder = some_run(tmp_path / "a")
    (folder / "metrics.json").write_text('{"split": "dev", "impressions": 4, "evaluated": 0}')
    with pytest.raises(
        UserError, match=r"a: dev has no impression with a clicked and a skipped candidate"
    ):
        read_run(folder)


def test_impressions_that_are_missing_or_damaged_are_refused(tmp_path):
    folder = some_run(tmp_path / "a")
    path = folder / "per_impression.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("mrr"), path)
    with pytest.raises(UserError, match=r"parquet cannot be read: .*mrr.*Evaluate again"):
        read_run(folder)
    words = table.set_column(table.column_names.index("auc"), "auc", pa.array(list("abcd")))
    pq.write_table(words, path)
    with pytest.raises(UserError, match=r"parquet cannot be read: .*Evaluate again"):
        read_run(folder)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"parquet cannot be read: .*Evaluate again"):
        read_run(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"a has no per_impression\.parquet\. Evaluate again"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"split": "last_day", "window": "14 November"},
            r"a is of the split dev \(15 November\), \S+b of the split last_day \(14 November\)",
        ),
        ({"data_fingerprint": "d2"}, r"fingerprint d1 \(.*fingerprint d2 \(.*same --data\.root"),
        ({"ids": [1, 2, 5, 4]}, r"row 3: impression 3 in \S+a, 5 in \S+b"),
        ({"users": [1, 2, 2, 4]}, r"users of the impressions differ between \S+a and \S+b"),
        (
            {"auc": [0.5, 0.6], "users": [1, 2]},
            r"a has 4 impressions, \S+b 2\. Evaluate both with the same",
        ),
    ],
)
def test_runs_of_other_impressions_are_refused(tmp_path, change, message):
    a = read_run(some_run(tmp_path / "a"))
    given = {"auc": [0.5, 0.6, np.nan, 0.8], "users": [1, 2, 2, 3]} | change
    b = read_run(write_run(tmp_path / "b", **given))
    with pytest.raises(UserError, match=message):
        pair([a], [b])
    with pytest.raises(UserError, match=message):
        pair(
            [a],
            [a._replace(folder=tmp_path / "c", metrics=a.metrics | {"checkpoint_sha256": 1}), b],
        )


@pytest.mark.parametrize(
    ("auc", "users", "message"),
    [
        ([np.nan, np.nan], [1, 2], "a: 0 impressions .* of 0 users"),
        ([0.5, 0.7], [1, 1], "a: 2 impressions .* of 1 user"),
    ],
)
def test_fewer_than_two_users_are_refused(tmp_path, auc, users, message):
    run = read_run(write_run(tmp_path / "a", auc, users))
    with pytest.raises(UserError, match=f"{message}.* evaluate a larger split"):
        pair([run], [run])


def test_a_run_counts_once_on_a_side(tmp_path):
    a = read_run(some_run(tmp_path / "a"))
    b = read_run(some_run(tmp_path / "b", checkpoint_sha256="a"))
    with pytest.raises(UserError, match=r"a is given twice on one side"):
        pair([a, a], [b])
    with pytest.raises(UserError, match=r"b and \S+a are one checkpoint on one side"):
        pair([b], [a, b])
    assert len(pair([a], [b]).a) == len(pair([a], [a]).a) == 1


def test_a_baseline_stands_alone_on_its_side(tmp_path):
    one, *two = (
        read_run(some_run(tmp_path / name, scorer=scorer))
        for name, scorer in (("a", "checkpoint"), ("b", "recent"), ("c", "random"))
    )
    pair([one], two[:1])
    for side in (two, [one, two[0]]):
        with pytest.raises(UserError, match=r"b is of the baseline recent, which has no training"):
            pair(side, [one])


def test_an_ensemble_is_known_by_its_checkpoints_in_any_order(tmp_path):
    about = {"ensemble": "mean_rank", "selected_on": "dev+last_day"}
    a = read_run(some_run(tmp_path / "a", checkpoint_sha256=["1", "2"], **about))
    b = read_run(some_run(tmp_path / "b", checkpoint_sha256=["2", "1"], **about))
    c = read_run(some_run(tmp_path / "c", checkpoint_sha256=["2", "3"], **about))
    assert has_seed(a)
    with pytest.raises(UserError, match=r"b and \S+a are one checkpoint on one side"):
        pair([a, b], [c])
    assert pair([a, c], [b]).a.shape[0] == 2
