"""Users by the million: the scorer of tables, and the command that runs it over Parquet."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_world import FakeEncoders, item, write_export

from newsrec.errors import DataError, UserError
from newsrec.serving import batch as module
from newsrec.serving.batch import RESULTS, BatchScorer
from newsrec.serving.matching import Matching, Users, match_all
from newsrec.serving.search import best_alone, score_alone
from newsrec.serving.vectors import pack

NEWS = 40
HEADS = {
    "dot": None,
    "late": {"head": "late", "clicks": 2},
    "interests": {"head": "interests", "interests": 3, "combine": "logsumexp", "temperature": 0.7},
}


class Encoders(FakeEncoders):
    """Encodes at once, but each number depends a little on the size of the block."""

    def users(self, histories, news):
        found = super().users([rows[-self.max_history :] for rows in histories], news)
        return Users(found.vectors * np.float32(1 + len(histories) * 1e-7))

    def user_vectors(self, histories, news):
        return self.users(histories, news).vectors[:, 0]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch") / "export"
    return write_export(folder, [item(i) for i in range(NEWS)])


@pytest.fixture(autouse=True)
def _encoders(monkeypatch):
    monkeypatch.setattr(module, "Encoders", Encoders)


def users_of(rng, number):
    """Return a table of users with unknown news, nulls, repeats and long histories."""
    histories = [
        [None if i == 3 else f"N{i}" for i in rng.integers(0, NEWS + 4, rng.integers(0, 9))]
        for _ in range(number)
    ]
    candidates = [[f"N{i}" for i in rng.permutation(NEWS + 4)[: rng.integers(0, 9)]]
                  for _ in range(number)]  # fmt: skip
    ids, times = [f"U{i % 7}" for i in range(number)], np.arange(number).astype("datetime64[s]")
    lists = {"history": histories, "candidates": candidates}
    return pa.table({"user_id": ids, **lists, "time": times})


@pytest.mark.parametrize("result", RESULTS)
def test_a_row_is_the_same_in_every_partition_of_the_users(export, result):
    users = users_of(np.random.default_rng(0), 23)
    whole = BatchScorer(export, result, k=5)(users)
    assert whole.num_rows == 23
    threads = BatchScorer(export, result, k=5, threads=3)
    for size in (1, 7, 22):
        parts = [users.slice(start, size) for start in range(0, len(users), size)]
        for scorer in (threads, pickle.loads(pickle.dumps(threads))):
            assert pa.concat_tables(map(scorer, parts)).equals(whole)


def test_the_best_news_are_those_of_a_plain_loop(export):
    users = users_of(np.random.default_rng(1), 30)
    vectors = np.load(export / "news_vectors.npy")
    known = {f"N{i}": i + 2 for i in range(NEWS)}
    for exclude in (True, False):
        found = BatchScorer(export, k=6, exclude_history=exclude)(users).to_pylist()
        for user, one in zip(users.to_pylist(), found, strict=True):
            rows = [known[i] for i in user["history"] if i in known]
            assert one["num_unknown_history"] == len(user["history"]) - len(rows)
            assert (one["user_id"], one["time"]) == (user["user_id"], user["time"])
            vector = vectors[rows[-3:]].mean(0) if rows else np.ones(4) / 8
            scores = vectors.astype(float) @ vector
            scores[[0, 1, *(rows if exclude else [])]] = -np.inf
            order = np.argsort(-scores, kind="stable")[:6]
            assert one["news_ids"] == [f"N{row - 2}" for row in order]
            np.testing.assert_allclose(one["scores"], scores[order], rtol=1e-5, atol=1e-7)


def test_candidates_are_ranked_and_unknown_ones_scored_by_the_mean(export):
    users = pa.table({"user_id": ["U1", "U2"], "history": [["N1"], []],
                      "candidates": [["N2", "X", "N2", "N3"], []]})  # fmt: skip
    first, second = BatchScorer(export, "ranks")(users).to_pylist()
    vectors = np.load(export / "news_vectors.npy")
    scores = vectors[[4, 1, 4, 5]] @ vectors[3]
    np.testing.assert_allclose(first["scores"], scores, rtol=1e-5, atol=1e-7)
    order = np.argsort(-scores, kind="stable")
    assert [first["ranks"][place] for place in order] == [1, 2, 3, 4]
    assert first["news_ids"] == ["N2", "X", "N2", "N3"]
    assert (first["num_unknown_candidates"], first["num_unknown_history"]) == (1, 0)
    assert second["ranks"] == second["news_ids"] == []


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), head=st.sampled_from(list(HEADS)), data=st.data())
def test_scores_made_alone_find_the_best_whatever_the_rounding_of_the_others(seed, head, data):
    rng = np.random.default_rng(seed)
    matching, dim = Matching(HEADS[head]), int(rng.choice([1, 3, 8, 33]))
    number = int(rng.integers(1, 60))
    news = rng.integers(-2, 3, (number, dim)) * np.float32(10.0 ** rng.integers(-3, 4))
    news += rng.standard_normal(news.shape) * np.float32(data.draw(st.sampled_from([0, 1e-6, 1])))
    news = pack(news.astype(np.float32), data.draw(st.sampled_from(["float32", "int8"])))
    vectors = rng.standard_normal((1, 1 if head == "dot" else 4, dim)).astype(np.float32)
    mask = rng.random((1, 3)) < 0.6 if head == "late" else None
    user = Users(vectors, mask, None if head == "dot" else matching.combine)
    exact = score_alone(user, news, np.arange(number))
    np.testing.assert_allclose(exact, match_all(user, news)[0], rtol=1e-3, atol=1e-3)
    for rows in (rng.permutation(number), rng.integers(0, number, 1)):
        np.testing.assert_array_equal(score_alone(user, news, rows), exact[rows])
    longest = float(np.linalg.norm(np.asarray(news[:]), axis=1).max())
    k = int(rng.integers(1, number + 1))
    rough = match_all(user, news)[0]
    away = rough * np.float32(1 + 3e-7 * rng.standard_normal())  # as of another processor
    for scores in (rough, away):
        best = best_alone(scores, user, news, k, longest)
        order = np.argsort(-exact, kind="stable")[:k]
        np.testing.assert_array_equal(best.rows, order)
        np.testing.assert_array_equal(best.scores, exact[order])


@pytest.mark.parametrize(
    "history",
    [
        pa.array([[1, 2, None]], pa.list_(pa.int64())),
        pa.array([["1", "2", None]], pa.large_list(pa.large_string())),
        pa.array([["1", "2", None]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array([[b"1", b"2", None]], pa.list_(pa.binary())),
        pa.array([["1", "2", "\ud7ff" * 9]], pa.list_(pa.string())),
        pa.array([["1", "2", None]], pa.list_(pa.string_view())),
    ],
    ids=["int64", "large_string", "dictionary", "binary", "string", "string_view"],
)
def test_ids_of_every_type_mean_the_same_news(tmp_path, history):
    items = [item(i)._replace(news_id=str(i)) for i in range(5)]
    scorer = BatchScorer(write_export(tmp_path / "export", items), k=2)
    users = [pa.array([7]), pa.array(["7"]).dictionary_encode(), pa.array(["7"], pa.large_string())]
    answers = [scorer(pa.table({"user_id": user, "history": history})) for user in users]
    assert answers[0]["user_id"].to_pylist() == ["7"]
    assert answers[0]["num_unknown_history"].to_pylist() == [1]
    assert answers[0].equals(answers[1])
    assert answers[0].equals(answers[2])
    plain = pa.table({"user_id": ["7"], "history": [["1", "2"]]})
    assert answers[0].drop("num_unknown_history") == scorer(plain).drop("num_unknown_history")


def test_of_a_huge_history_the_newest_clicks_count(export):
    old = [f"N{i}" for i in range(8, 20)] * 5000
    users = pa.table(
        {"user_id": ["A", "B"], "history": [[*old, "N1", "N2", "N3"], ["N1", "N2", "N3"]]}
    )
    first, second = BatchScorer(export, "vectors")(users)["user_vector"].to_pylist()
    assert first == second
    best = BatchScorer(export, k=NEWS)(users)["news_ids"].to_pylist()
    assert set(best[1]) - set(best[0]) == {
        f"N{i}" for i in range(8, 20)
    }  # all clicked are left out


def test_a_table_without_users_has_the_columns(export):
    users = users_of(np.random.default_rng(2), 3)
    for result, columns in RESULTS.items():
        answer = BatchScorer(export, result, k=3)(users.slice(0, 0))
        assert answer.num_rows == 0
        assert answer.schema.names == ["user_id", "time", *columns, "num_unknown_history"]
        assert answer.schema.equals(BatchScorer(export, result, k=3)(users).schema)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"history": None}, "has no column history, only user_id, candidates"),
        ({"history": [["N1"], None]}, "row 1, column history: null"),
        ({"user_id": ["U1", None]}, "row 1, column user_id: null, empty or not UTF-8"),
        ({"user_id": ["", "U2"]}, "row 0, column user_id: null, empty or not UTF-8"),
        ({"user_id": [1.5, 2.5]}, "the column user_id holds"),
        ({"history": ["N1 N2", ""]}, "lists of ids (text or whole numbers)"),
        ({"history": [[["N1"]], []]}, "lists of ids"),
        ({"history": [[{"id": "N1"}], []]}, "lists of ids"),
        (
            {"candidates": [["N1", None], []]},
            "row 0, column candidates: a null or empty id: 'N1 None'",
        ),
        ({"candidates": [["N1"], None]}, "row 1, column candidates: null"),
    ],
)
def test_users_that_cannot_be_scored_are_told(export, change, said):
    columns = {"user_id": ["U1", "U2"], "history": [["N1"], []], "candidates": [["N2"], []]}
    columns = {name: value for name, value in (columns | change).items() if value is not None}
    with pytest.raises(DataError) as error:
        BatchScorer(export, "ranks")(pa.table(columns))
    assert said in str(error.value)
    assert str(error.value).startswith("The table of users")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k is 0; it must be from 1 to the number of news, 40."),
        ({"k": 41}, "k is 41;"),
        ({"result": "best"}, "result is 'best'; it must be one of news, ranks, vectors."),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_settings_that_cannot_be_are_told(export, settings, said):
    with pytest.raises(UserError, match="^" + said.replace(".", r"\.")):
        BatchScorer(export, **settings)


def test_an_export_without_news_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no news"):
        BatchScorer(write_export(tmp_path / "export"))
