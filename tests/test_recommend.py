"""An export is served; the oracles are the PyTorch model, one item or user at a time, and loops.

The export's fields, sizes and news items are small enough for that, and awkward on purpose.
"""

import json
import logging
import shutil
import subprocess
import sys
import threading
import typing
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import NEWS
from tokenizers import Tokenizer

from newsrec.data.fields import Texts, news_texts
from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.serving import Recommender
from newsrec.serving.folder import NEWS_SCHEMA, StoredNews, with_unknown, write_news
from newsrec.serving.sessions import padded_sequences

DIM, MAX_HISTORY, MAX_TOKENS = 16, 20, 12
FIELDS = ["title", "abstract"]
IDS = list(NEWS)


def write_manifest(folder, **changes):
    """Write a manifest that names every file as it is now."""
    manifest = {
        "format": 2,
        "dim": DIM,
        "max_history": MAX_HISTORY,
        "max_tokens": MAX_TOKENS,
        "fields": FIELDS,
        "model_hash": "tiny",
    }
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    manifest["files"] = {name: file_hash(folder / name) for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def encode_text(world, text):
    """One news item through PyTorch, alone."""
    tokenizer = Tokenizer.from_file(str(world.plm_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    ids = tokenizer.encode(text).ids or [0]
    with torch.no_grad():
        return world.model.news_encoder(torch.tensor([ids]), torch.tensor([len(ids)]))[0].numpy()


def encode_alone(world, vectors):
    """One user through PyTorch, alone ``[clicks, dim]``."""
    clicks = torch.from_numpy(np.array(vectors, dtype=np.float32).reshape(-1, DIM))
    mask = torch.ones(1, max(len(clicks), 1), dtype=torch.bool) & (len(clicks) > 0)
    history = clicks[None] if len(clicks) else torch.zeros(1, 1, DIM)
    with torch.no_grad():
        return world.model.user_encoder(history, mask)[0, 0].numpy()


@pytest.fixture(scope="module")
def world(exported_encoders, plm_dir, tmp_path_factory):
    """A small untrained model, the folder that was exported, and what it holds."""
    module, encoders, _ = exported_encoders
    folder = shutil.copytree(encoders, tmp_path_factory.mktemp("served") / "export")
    world = SimpleNamespace(model=module.recommender, folder=folder, plm_dir=plm_dir)
    columns = dict(
        zip(
            ("category", "subcategory", "title", "abstract"),
            zip(*NEWS.values(), strict=True),
            strict=True,
        )
    )
    texts = news_texts(pa.table(columns), FIELDS)
    world.texts = dict(zip(IDS, texts.to_pylist(), strict=True))
    table = {name: columns[name] for name in ("title", "category", "subcategory")}
    table |= {"row": range(2, 2 + len(IDS)), "news_id": IDS, "text_hash": Texts(texts).hashes()}
    vectors = np.stack([encode_text(world, text) for text in texts.to_pylist()])
    stored = StoredNews(
        pa.table({n: pa.array(table[n]) for n in NEWS_SCHEMA.names}, NEWS_SCHEMA),
        with_unknown(vectors),
    )
    write_news(stored, folder)
    world.vectors = dict(zip(IDS, vectors, strict=True))
    write_manifest(folder)
    return world


@pytest.fixture(scope="module")
def recommender(world):
    return Recommender.load(world.folder, threads=1)


@pytest.fixture
def copied(world, tmp_path):
    return shutil.copytree(world.folder, tmp_path / "export")


HISTORIES = [
    ["N1", "N3", "N1", "N9"],
    [],
    ["N404", "N405"],
    ["N5"],
    [IDS[i % 20] for i in range(33)],
    ["N404", "N7", "N404", "N8", "N405"],
    ["N2"] * 25,
]
KNOWN = [[news_id for news_id in history if news_id in NEWS] for history in HISTORIES]


def assert_close(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


def expected_users(world):
    return [
        encode_alone(world, [world.vectors[i] for i in known[-MAX_HISTORY:]]) for known in KNOWN
    ]


# Users


def test_user_vectors_are_those_of_the_model_one_user_at_a_time(world, recommender):
    users = recommender.user_vectors(HISTORIES)
    assert users.dtype == np.float32
    assert_close(users, expected_users(world))


def test_one_user_gives_one_vector_and_the_same(recommender):
    together = recommender.user_vectors(HISTORIES)
    for history, user in zip(HISTORIES, together, strict=True):
        alone = recommender.user_vector(history)
        assert alone.shape == (DIM,)
        assert_close(alone, user, 1e-6)
        assert_close(recommender.user_vectors([history]), user[None], 1e-6)


def test_users_of_all_lengths_in_many_blocks_keep_their_places(recommender, monkeypatch):
    rng = np.random.default_rng(0)
    histories = [rng.choice(IDS, rng.integers(0, 30)).tolist() for _ in range(200)]
    together = recommender.user_vectors(histories)
    monkeypatch.setattr("newsrec.serving.sessions.CLICKS_PER_RUN", 1)
    assert_close(recommender.user_vectors(histories), together, 1e-6)


def test_a_history_of_ten_thousand_is_its_end(recommender):
    history = (IDS * 500)[:10_000]
    assert_close(recommender.user_vector(history), recommender.user_vector(history[-20:]), 1e-6)
    found = recommender.recommend(["N404", *history], k=3)
    assert found.news_ids == []  # all were read
    assert len(recommender.recommend(history, k=3, exclude_history=False).news_ids) == 3


def test_unknown_ids_that_cannot_be_reported_are_logged_once(recommender, caplog):
    with caplog.at_level(logging.WARNING, "newsrec.serving.ranking"):
        recommender.user_vectors([["X1", "X2", "X1"], [f"Y{i}" for i in range(9)], ["N1"]])
        recommender.user_vector(["N1"])
    (record,) = caplog.records
    assert record.getMessage() == (
        "11 ids of histories are not in the catalogue and were left out: X1, X2, Y0, Y1, Y2, ..."
    )


def test_blocks_hold_every_sequence_once_and_little_padding():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 9, rng.integers(0, 12)).tolist() for _ in range(100)]
    seen = {}
    for members, numbers, mask in padded_sequences(sequences, 40):
        assert mask.shape[1] >= 1
        assert mask.size <= 40
        assert (numbers[~mask] == 0).all()
        for member, row, real in zip(members.tolist(), numbers, mask, strict=True):
            assert member not in seen
            seen[member] = row[real].tolist()
    assert [seen[i] for i in range(100)] == sequences
    assert [mask.shape for _, _, mask in padded_sequences([[1] * 50, [], [2]], 10)] == [
        (1, 50),
        (2, 1),
    ]
    assert list(padded_sequences([], 10)) == []
    for alone in ([3, 1, 2], [], range(4)):  # one sequence goes another way
        ((members, numbers, mask),) = padded_sequences([alone], 10)
        ((_, expected, real),) = padded_sequences([alone, []], 20)
        assert members.tolist() == [0]
        assert (numbers.tolist(), mask.tolist()) == (expected[:1].tolist(), real[:1].tolist())


# Ranking and recommending


def test_candidates_are_ranked_by_a_loop_over_the_models_scores(world, recommender):
    candidates = ["N6", "N404", "N1", "N13", "N14", "N10"]
    mean = np.mean(list(world.vectors.values()), axis=0)
    rankings = recommender.rank_many(HISTORIES, [candidates] * len(HISTORIES))
    for user, history, ranking in zip(expected_users(world), HISTORIES, rankings, strict=True):
        scores = {i: float(world.vectors.get(i, mean) @ user) for i in candidates}
        expected = sorted(candidates, key=lambda i: -scores[i])
        assert ranking.ranked_ids == ranking.news_ids == expected
        assert_close(ranking.ranked_scores, [scores[i] for i in expected])
        assert ranking.candidates == candidates
        assert_close(ranking.candidate_scores, [scores[i] for i in candidates])
        assert ranking.unknown_candidates == ["N404"]
        assert ranking.unknown_history == [i for i in ("N404", "N405") if i in history]
        alone = recommender.rank(history, candidates)
        assert alone.news_ids == ranking.news_ids
        assert_close(alone.candidate_scores, ranking.candidate_scores, 1e-6)


def test_scores_of_a_ranking_say_which_order_they_are_in(recommender):
    """Scores in order of rank were taken for those of the candidates given, by the README too."""
    best = recommender.rank(["N1", "N2", "N3"], ["N8", "N4", "N3"]).ranked_ids
    ranking = recommender.rank(["N1", "N2", "N3"], best[::-1])
    assert ranking.ranked_ids == best != ranking.candidates
    for news_id, score in zip(ranking.candidates, ranking.candidate_scores, strict=True):
        alone = recommender.rank(["N1", "N2", "N3"], [news_id])
        assert_close(alone.candidate_scores, [score])
    by_id = dict(zip(ranking.candidates, ranking.candidate_scores, strict=True))
    assert [by_id[news_id] for news_id in ranking.ranked_ids] == ranking.ranked_scores.tolist()
    assert (np.diff(ranking.ranked_scores) <= 0).all()
    with pytest.raises(AttributeError, match="candidate_scores are in the order of the candidates"):
        _ = ranking.scores


def test_an_unknown_candidate_has_the_users_mean_score_of_all_news(recommender):
    everything = recommender.recommend_many(HISTORIES, k=20, exclude_history=False)
    rankings = recommender.rank_many(HISTORIES, [["N1", "ZZZ"]] * len(HISTORIES))
    for found, ranking in zip(everything, rankings, strict=True):
        assert ranking.unknown_candidates == ["ZZZ"]
        mean = found.scores.mean()
        assert ranking.candidate_scores[1] == pytest.approx(mean, abs=1e-4)


def test_equal_scores_keep_the_order_given(recommender):
    unknown = ["X3", "X1", "X2"]
    assert recommender.rank(["N1"], unknown).news_ids == unknown
    ranking = recommender.rank(["N1"], [])
    assert (ranking.ranked_ids, len(ranking.candidate_scores)) == ([], 0)


def test_the_best_of_the_catalogue_are_those_of_a_loop(world, recommender):
    for exclude in (True, False):
        results = recommender.recommend_many(HISTORIES, k=7, exclude_history=exclude)
        for user, history, found in zip(expected_users(world), HISTORIES, results, strict=True):
            scores = {i: float(world.vectors[i] @ user) for i in IDS}
            left = [i for i in IDS if not (exclude and i in history)]
            expected = sorted(left, key=lambda i: -scores[i])[:7]
            assert found.news_ids == expected
            assert_close(found.scores, [scores[i] for i in expected])
            assert found.unknown_history == [i for i in ("N404", "N405") if i in history]
            alone = recommender.recommend(history, 7, exclude)
            assert alone.news_ids == found.news_ids
            assert_close(alone.scores, found.scores, 1e-6)


def test_categories_limit_what_is_recommended(recommender):
    everything = recommender.recommend(["N1"], k=20, exclude_history=False)
    wanted = {"food", "music"}
    expected = [i for i in everything.news_ids if NEWS[i][0] in wanted]
    found = recommender.recommend(["N1", "N13"], k=20, categories=["food", "music"])
    assert sorted(found.news_ids) == sorted(set(expected) - {"N13"})
    found = recommender.recommend(["N1"], k=3, categories=["food", "music"])
    assert found.news_ids == expected[:3]


def test_recommendations_and_rankings_agree(recommender):
    found = recommender.recommend_many(HISTORIES, k=20, exclude_history=False)
    for result, ranking in zip(found, recommender.rank_many(HISTORIES, [IDS] * 7), strict=True):
        assert_close(result.scores, ranking.ranked_scores, 1e-6)
        assert sorted(result.news_ids) == sorted(ranking.ranked_ids)


# News items


def test_news_are_encoded_as_by_the_model_alone(world, recommender):
    titles = [s[2] for s in NEWS.values()] + ["", 'He said "no" \t twice', "日本語 e\u0301 🎈"]
    abstracts = [s[3] for s in NEWS.values()] + [None, "'", ""]
    texts = [
        f"{t} {a or ''}".strip().replace(" \t ", " ")
        for t, a in zip(titles, abstracts, strict=True)
    ]
    vectors = recommender.encode_news(titles, abstracts=abstracts)
    assert vectors.dtype == np.float32
    assert_close(vectors, [encode_text(world, text) for text in texts])
    assert_close(vectors[:20], list(world.vectors.values()))
    assert recommender.encode_news([], abstracts=[]).shape == (0, DIM)


def test_equal_texts_are_encoded_once_and_blocks_are_bounded(recommender, monkeypatch):
    titles = [" ".join(["cup"] * (i % 9)) for i in range(40)]
    once = recommender.encode_news(titles[:9], abstracts=[None] * 9)
    sizes = []
    run = recommender._encoders._run

    def counted(session, feed, name):
        sizes.append(feed["token_ids"].shape)
        return run(session, feed, name)

    monkeypatch.setattr(recommender._encoders, "_run", counted)
    monkeypatch.setattr("newsrec.serving.sessions.TOKENS_PER_RUN", 24)
    found = recommender.encode_news(titles, abstracts=[""] * 40)
    assert_close(found, [once[i % 9] for i in range(40)], 1e-5)
    assert sum(rows for rows, _ in sizes) == 9
    assert max(rows * tokens for rows, tokens in sizes) <= 24


def test_added_news_are_found_ranked_and_counted_into_the_unknown_one(world, copied):
    recommender = Recommender.load(copied, threads=1)
    before = recommender.news
    counts = recommender.add_news(
        ["N1", "N30", "N2", "N30"],
        [NEWS["N1"][2], "Storm over the café", "A new title", "Storm over the café"],
        categories=["sports", "new", "sports", "new"],
        abstracts=[NEWS["N1"][3], None, None, None],
    )
    assert counts == (1, 1, 1)
    expected = world.vectors | {
        "N2": encode_text(world, "A new title"),
        "N30": encode_text(world, "Storm over the café"),
    }
    vectors = recommender.news_vectors
    assert recommender.news["news_id"].to_pylist() == [*IDS, "N30"]
    assert recommender.news.schema == NEWS_SCHEMA
    assert_close(vectors[2:], list(expected.values()))
    assert_close(vectors[1], np.mean(list(expected.values()), axis=0))
    assert not vectors[0].any()
    assert recommender.news["title"].to_pylist()[1] == "A new title"
    assert recommender.news["row"].to_pylist() == list(range(2, 23))
    assert before["title"].to_pylist()[1] == NEWS["N2"][2]  # what was read before stays
    assert recommender.recommend(["N1"], k=1, categories=["new"]).news_ids == ["N30"]
    assert recommender.rank(["N30"], ["N30"]).unknown_candidates == []
    assert recommender.add_news(["N30"], ["Storm over the café"], abstracts=[""]) == (0, 0, 1)

    # What the properties give can be written, and read again.
    write_news(StoredNews(recommender.news, recommender.news_vectors), copied)
    write_manifest(copied)
    again = Recommender.load(copied, threads=1)
    assert again.news.equals(recommender.news)
    assert again.recommend(["N30"], k=5).news_ids == recommender.recommend(["N30"], k=5).news_ids


def test_a_catalogue_can_begin_empty(world, copied):
    (copied / "news_vectors.npy").unlink()
    (copied / "news.parquet").unlink()
    write_manifest(copied)
    recommender = Recommender.load(copied, threads=1)
    assert_close(recommender.user_vector(["N1"]), encode_alone(world, []))
    assert recommender.rank(["N1"], ["N2"]).unknown_candidates == ["N2"]
    with pytest.raises(UserError, match=r"holds no news.*add_news.*--data\.root"):
        recommender.recommend(["N1"])
    assert recommender.add_news(["A", "B"], ["Rain", "Snow"], abstracts=["", ""]) == (2, 0, 0)
    assert sorted(recommender.recommend([], k=2).news_ids) == ["A", "B"]
    assert_close(recommender.news_vectors[1], recommender.news_vectors[2:].mean(axis=0))


def test_a_reader_sees_the_old_or_the_new_catalogue_while_news_are_added(world, copied):
    recommender = Recommender.load(copied, threads=1)
    titles = ["Rain over the coast", "Gold and shares rise"]
    vectors = [recommender.encode_news([t], abstracts=[""])[0] for t in titles]
    seen, failures = set(), []
    done = threading.Event()

    def read():
        # News items A and B always have the same text, and A is in if and only if B is.
        while not done.is_set():
            ranking = recommender.rank([], ["A", "B"])
            together = abs(ranking.ranked_scores[0] - ranking.ranked_scores[1]) < 1e-5
            if len(ranking.unknown_candidates) == 1 or not together:
                failures.append(ranking)
            found = recommender.recommend(["N1"], k=20)
            if len({"A", "B"} & set(found.news_ids)) == 1:
                failures.append(found)
            seen.add(round(float(ranking.ranked_scores[0]), 3))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        recommender.add_news(["A", "B"], [titles[turn % 2]] * 2, abstracts=[""] * 2)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    user = recommender.user_vector([])
    possible = [vector @ user for vector in vectors]
    of_news = [score for score in seen if min(abs(score - p) for p in possible) < 1e-3]
    assert len(of_news) == 2
    assert len(seen) <= 3  # and the unknown news item's, before the first were added


def test_news_added_by_several_threads_are_all_there(copied):
    recommender = Recommender.load(copied, threads=1)

    def add(thread):
        for i in range(10):
            recommender.add_news([f"T{thread}-{i}"], [f"News item {i}"], abstracts=[None])

    threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recommender.news) == len(recommender.news_vectors) - 2 == 60


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.recommend(["N1"], k=0), "k is 0; it must be from 1 to the number of news, 20"),
        (lambda r: r.recommend(["N1"], k=2.5), "k is 2.5"),
        (lambda r: r.recommend(["N1"], k=None), "k is None"),
        (lambda r: r.recommend(["N1"], k=21), "k is 21"),
        (lambda r: r.recommend(["N1"], categories=["sport"]), "category 'sport'.*There is sports"),
        (lambda r: r.recommend(["N1"], categories=["qqq"]), "There is finance, food, music"),
        (lambda r: r.recommend(["N1"], categories="sports"), r"Give \['sports'\]"),
        (lambda r: r.recommend(["N1"], categories=[]), "categories is an empty list"),
        (lambda r: r.recommend("N1"), r"history_ids is a str.*Give \['N1'\]"),
        (lambda r: r.recommend(None), "history_ids is a NoneType"),
        (lambda r: r.recommend_many([["N1"], "N2"]), r"histories\[1\] is a str"),
        (lambda r: r.recommend([["N1"]]), "history_ids is a list of lists.*call recommend_many"),
        (lambda r: r.recommend_many(["N1"]), r"histories\[0\] is a str.*Give \['N1'\]"),
        (lambda r: r.user_vector([["N1"], []]), "history_ids is a list.*call user_vectors"),
        (lambda r: r.user_vectors("N1"), "histories is a str"),
        (lambda r: r.user_vector(["N1", 7]), r"history_ids\[1\] is 7, a int"),
        (lambda r: r.user_vectors([["N1"], ["N2", None]]), r"histories\[1\]\[1\] is None"),
        (lambda r: r.user_vector(["N1", ["N2"]]), r"history_ids\[1\] is \['N2'\], a list"),
        (lambda r: r.rank(["N1"], "N2"), "candidate_ids is a str"),
        (lambda r: r.rank(["N1"], ["N2", "N3", "N2"]), "candidate_ids holds 'N2' twice"),
        (lambda r: r.rank_many([["N1"]], [["X", "X"]]), r"candidates\[0\] holds 'X' twice"),
        (lambda r: r.rank_many([["N1"], []], [["N2"]]), "histories has 2 entries and candidates 1"),
        (lambda r: r.rank([["N1"]], ["N2"]), "history_ids is a list of lists.*call rank_many"),
        (lambda r: r.rank(["N1"], [["N2"]]), "candidate_ids is a list of lists.*call rank_many"),
        (lambda r: r.rank_many([["N1"]], ["N2"]), r"candidates\[0\] is a str"),
        (lambda r: r.rank(["N1"], ["N2", 3.5]), r"candidate_ids\[1\] is 3.5"),
        (lambda r: r.encode_news("Rain", abstracts=[""]), r"titles is a str.*Give \['Rain'\]"),
        (lambda r: r.encode_news(["Rain"]), "reads a news item's title, abstract: give abstracts"),
        (lambda r: r.encode_news(["Rain"], abstracts=[]), "titles has 1 entries and abstracts 0"),
        (lambda r: r.encode_news(["Rain"], ["a", "b"], abstracts=[""]), "and categories 2"),
        (lambda r: r.encode_news([None], abstracts=[""]), r"titles\[0\] is None"),
        (lambda r: r.encode_news(["Rain \ud83d"], abstracts=[""]), r"titles\[0\].*half a char"),
        (lambda r: r.encode_news(["Rain"], [None], abstracts=[""]), r"categories\[0\] is None"),
        (lambda r: r.add_news("N1", ["Rain"], abstracts=[""]), "news_ids is a str"),
        (lambda r: r.add_news(["N1", "A"], ["Rain"], abstracts=[""]), "news_ids has 2 entries"),
        (
            lambda r: r.add_news(["A", "B", "A"], ["Rain", "Sun", "Snow"], abstracts=[""] * 3),
            "news_ids holds 'A' twice, with different texts",
        ),
    ],
)
def test_a_mistake_is_named(recommender, call, message):
    before = recommender.news
    with pytest.raises(UserError, match=message):
        call(recommender)
    assert recommender.news is before


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_an_impossible_number_of_threads_is_refused(world, threads):
    with pytest.raises(UserError, match=f"threads is {threads!r};"):
        Recommender.load(world.folder, threads)


def change_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["user_encoder.onnx", "news_vectors.npy", "news.parquet"])
def test_a_changed_or_missing_file_is_refused_at_the_start(copied, name):
    change_byte(copied / name)
    with pytest.raises(UserError, match=rf"{name} is not the file that manifest\.json names"):
        Recommender.load(copied)
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Recommender.load(copied)


@pytest.mark.parametrize("name", ["news_encoder.onnx", "tokenizer.json"])
def test_what_encodes_news_is_checked_when_it_is_needed(copied, name):
    change_byte(copied / name)
    recommender = Recommender.load(copied, threads=1)
    assert recommender.recommend(["N1"], k=1).news_ids
    with pytest.raises(UserError, match=f"{name} is not the file"):
        recommender.encode_news(["Rain"], abstracts=[""])


def test_an_export_without_news_encoder_serves_what_it_knows(copied):
    (copied / "news_encoder.onnx").unlink()
    write_manifest(copied)
    recommender = Recommender.load(copied, threads=1)
    assert recommender.recommend(["N1"], k=1).news_ids
    with pytest.raises(UserError, match=r"exported without news_encoder\.onnx"):
        recommender.add_news(["A"], ["Rain"], abstracts=[""])


def test_another_format_and_another_size_are_refused(copied):
    write_manifest(copied, format=1)
    with pytest.raises(UserError, match="format 1; this version of newsrec reads format 2"):
        Recommender.load(copied)
    write_manifest(copied, format="2")
    with pytest.raises(UserError, match="format '2'; this version of newsrec reads format 2"):
        Recommender.load(copied)
    write_manifest(copied, dim=DIM + 1)
    with pytest.raises(UserError, match=r"user_encoder\.onnx gives vectors of size 16.*says 17"):
        Recommender.load(copied)
    write_manifest(copied)
    np.save(copied / "news_vectors.npy", np.zeros((22, DIM + 1), np.float32))
    write_manifest(copied)
    with pytest.raises(UserError, match=r"float32 \[22, 17\].*float32 \[22, 16\]"):
        Recommender.load(copied)
    with pytest.raises(UserError, match=r"no .*nowhere\. Give a folder that export wrote"):
        Recommender.load(copied / "nowhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [("dim", None), ("max_history", "50"), ("max_tokens", None), ("fields", "title"),
     ("model_hash", None), ("files", [])],
)  # fmt: skip
def test_a_manifest_that_lacks_something_is_refused(copied, name, value):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {name: value}))
    with pytest.raises(UserError, match=rf"manifest\.json: {name} is .*Copy the folder again"):
        Recommender.load(copied)


def test_news_in_another_order_than_their_vectors_are_refused(copied):
    table = pq.read_table(copied / "news.parquet")
    pq.write_table(table.take(list(range(len(table)))[::-1]), copied / "news.parquet")
    write_manifest(copied)
    with pytest.raises(UserError, match=r"news\.parquet: row must count up from 2"):
        Recommender.load(copied)


def test_nan_is_refused_in_vectors_and_from_an_encoder(copied, monkeypatch):
    vectors = np.load(copied / "news_vectors.npy")
    vectors[5, 3] = np.nan
    np.save(copied / "news_vectors.npy", vectors)
    write_manifest(copied)
    with pytest.raises(UserError, match="row 5 holds NaN"):
        Recommender.load(copied)


def test_an_encoder_that_gives_nan_is_refused(world):
    recommender = Recommender.load(world.folder, threads=1)
    gone_wrong = SimpleNamespace(run=lambda *_: [np.full((1, DIM), np.nan, np.float32)])
    recommender._encoders._user_encoder = gone_wrong
    with pytest.raises(UserError, match=r"user_encoder\.onnx gave NaN"):
        recommender.recommend(["N1"], k=1)


def test_what_is_not_installed_is_named(world, monkeypatch):
    recommender = Recommender.load(world.folder, threads=1)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        recommender.encode_news(["Rain"], abstracts=[""])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        Recommender.load(world.folder)


def test_nothing_heavy_is_imported(world):
    code = f"""
import sys
from newsrec.serving import Recommender
assert not {{"onnxruntime", "tokenizers"}} & set(sys.modules)
recommender = Recommender.load({str(world.folder)!r}, threads=1)
recommender.recommend(["N1"], k=1)
assert not {{"tokenizers", "pandas"}} & set(sys.modules)
recommender.add_news(["A"], ["Rain"], abstracts=[None])  # pyarrow now imports pandas by itself
heavy = {{"torch", "lightning", "transformers", "matplotlib", "filelock"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_type_checkers_tell_one_user_from_several():
    for name in ("recommend", "rank"):
        one, many = (getattr(Recommender, name + end) for end in ("", "_many"))
        result = typing.get_type_hints(one)["return"]
        assert typing.get_type_hints(many)["return"] == list[result]


def test_the_session_gives_what_the_folder_promises(world):
    session = onnxruntime.InferenceSession(str(world.folder / "news_encoder.onnx"))
    assert [i.name for i in session.get_inputs()] == ["token_ids", "mask"]
    assert pq.read_schema(world.folder / "news.parquet") == NEWS_SCHEMA
