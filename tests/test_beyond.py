import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from beyond_worlds import VOICES, by_loop, from_pool, random_data, voices_of

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.evaluation import beyond_lists, beyond_results
from newsrec.evaluation.beyond import (
    CUTS,
    MEANINGS,
    OF_CATEGORIES,
    OF_VECTORS,
    PER_IMPRESSION,
    TABLE,
    WHOLE,
    Lists,
    calibration,
    fragmentation,
    near_duplicates,
)
from newsrec.evaluation.beyond_lists import centred, measure, shown_news, top_of
from newsrec.evaluation.beyond_results import (
    beyond_accuracy,
    differences,
    jackknife,
    leave_outs,
    row_intervals,
    unlike_metrics,
)
from newsrec.evaluation.exposure import gini
from newsrec.evaluation.intervals import mean_interval
from newsrec.evaluation.pools import Pool, distance_from_pool, kinds_of, shares_of
from newsrec.evaluation.runs import EvaluatedRun
from newsrec.metrics import ranks
from newsrec.report.beyond import (
    beyond_notes,
    beyond_rows,
    beyond_table,
    directions,
    short_number,
    short_range,
)
from newsrec.report.page_rows import beyond_groups


@pytest.fixture(scope="module")
def world():
    """2,000 impressions, some of them with unknown news, few candidates or no history."""
    data, scores, vectors = random_data(2000, 402, 12, unknown=0.1, annotated=True)
    vectors[200:202] = vectors[100:102]  # near-duplicates
    vectors[202:240] = vectors[102:140] * 2
    split = data.split("train")
    return data, split, scores, ranks(scores, split.candidates.offsets), vectors


def test_every_metric_is_that_of_a_loop_in_2000_impressions(world):
    data, split, scores, rank, vectors = world
    kinds = kinds_of(data, voices_of(VOICES))
    found = measure(data, "train", {"": top_of(split, rank)}, vectors, kinds=kinds)[""]
    others = beyond_lists.draw_others(split.user, seed=0)
    assert (split.user[others] != split.user[:, None]).all()
    unit = centred(vectors).astype(np.float64)
    expected = by_loop(data, scores, unit, others, range(2000), voices=VOICES)
    table = np.array([[line[name] for line in expected] for name in PER_IMPRESSION])
    np.testing.assert_allclose(found, table, atol=2e-6, rtol=2e-6)
    assert 0 < np.isnan(table).sum() < 0.2 * table.size
    assert 0 < np.nanmean(table[PER_IMPRESSION.index("near_duplicates@10")]) < 0.5


def test_without_a_file_of_voices_persons_are_counted_by_name(world):
    data, split, scores, rank, vectors = world
    found = measure(data, "train", {"": top_of(split, rank)})[""]
    others = beyond_lists.draw_others(split.user, seed=0)
    expected = by_loop(data, scores, centred(vectors).astype(float), others, range(300))
    for row, name in enumerate(PER_IMPRESSION):
        if name.startswith(("activation", "representation", "alternative")):
            own = [line[name] for line in expected]
            np.testing.assert_allclose(found[row, :300], own, atol=2e-6)
            assert np.isnan(own).all() == name.startswith("alternative")


def test_data_without_annotations_have_none_of_their_metrics(mind_dir):
    data = open_mind(mind_dir)
    assert data.news.column_names == ["news_id", "category", "subcategory", "title", "abstract"]
    part = data.split("dev")
    rank = ranks(np.arange(len(part.candidates.values)), part.candidates.offsets)
    found = beyond_accuracy(data, "dev", rank, {}, None, voices_of(VOICES))
    assert not {n for n in found.metrics["metrics"] if n.startswith(("act", "rep", "alt"))}
    assert found.metrics["voices"]["found"] == 0


def test_distances_from_pools_equal_those_of_a_loop():
    rng = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(400):
        # Few kinds, so that there are worlds of one kind alone or of none; rows 0 and 1 have none.
        number, width = rng.integers(2, 9), rng.integers(1, 5)
        kinds = [rng.integers(0, width, rng.integers(0, 4)).tolist() for _ in range(number)]
        kinds = [[], [], *kinds]
        pools = [rng.integers(0, number + 2, rng.integers(0, 13)) for _ in range(3)]
        lists = np.zeros((3, 5), dtype=int)
        for row, pool in enumerate(pools):
            lists[row, : len(pool)] = rng.permutation(pool)[:5]
        owner = np.repeat(np.arange(number + 2), [len(row) for row in kinds])
        shares = shares_of(
            owner, pa.array([kind for row in kinds for kind in row], pa.int32()), number + 2
        )
        shown = Ragged(np.concatenate(pools), to_offsets([len(pool) for pool in pools]))
        pool = Pool.of(shares, shown)
        assert (pool is None) == (len(owner) == 0)
        found += [math.nan] * 3 if pool is None else distance_from_pool(pool, lists).tolist()
        expected += [
            from_pool(one, range(1, 6), all_, kinds) for one, all_ in zip(lists, pools, strict=True)
        ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 100 < np.isnan(expected).sum() < 1000


def test_blocks_change_nothing(world, monkeypatch):
    data, split, _, rank, vectors = world
    top = top_of(split, rank)
    whole = measure(data, "train", {"": top}, vectors)[""]
    monkeypatch.setattr(beyond_lists, "BLOCK", 170)
    monkeypatch.setattr(beyond_lists, "CELLS", 3000)
    np.testing.assert_allclose(measure(data, "train", {"": top}, vectors)[""], whole, rtol=1e-5)


def test_coverage_and_gini_are_those_of_a_loop_and_of_a_jackknife_by_hand(world):
    _, split, _, rank, _ = world
    top = top_of(split, rank).news
    shown = shown_news(split)
    assert set(np.flatnonzero(shown)) == set(split.candidates.values) - {1}

    def by_hand(rows, k):
        lists = [[n for n in top[row, :k] if n > 1] for row in rows]
        counts = np.array([sum(n in one for one in lists) for n in np.flatnonzero(shown)])
        # rows that list a news item twice are not drawn here
        apart = sum(np.abs(a - counts).sum() for a in counts)
        return (counts > 0).mean(), apart / (2 * len(counts) ** 2 * counts.mean())

    rows = [r for r in range(2000) if len({*top[r]}) == len(top[r])][:60]
    found = leave_outs(top[rows], np.arange(60), int(shown.sum()))
    assert {len(values) for values in found.values()} == {41}
    for k in CUTS:
        whole = by_hand(rows, k)
        assert found[f"coverage@{k}"][0] == pytest.approx(whole[0])
        assert found[f"gini@{k}"][0] == pytest.approx(whole[1])
        left = [r for place, r in enumerate(rows) if place % 40 != 3]
        assert found[f"gini@{k}"][4] == pytest.approx(by_hand(left, k)[1])
    values = np.array([0.5, 0.4, 0.5, 0.6])
    low, high = jackknife(values)
    assert (low + high) / 2 == pytest.approx(0.5)
    error = math.sqrt(2 / 3 * sum((v - 0.5) ** 2 for v in values[1:]))
    assert (high - low) / 2 == pytest.approx(4.30265 * error, rel=1e-5)
    assert np.isnan(jackknife(np.array([0.5, 0.4]))).all()


def test_gini_is_0_where_all_are_equal_and_near_1_where_one_has_all():
    assert gini(np.array([3, 3, 3])) == 0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.zeros(4, dtype=int)) == 0


def one_list(categories, read, others=()):
    """Return a list of known news, two clicks of whose user of three are of category 0."""
    news = np.arange(2, 2 + len(categories))[None]
    shares = np.array(read, dtype=float)[np.array(categories)][None]
    cosines = np.ones((1, len(categories), len(categories)))
    return Lists(news, np.array([categories]), shares, np.array([others]), np.zeros(news.shape),
                 cosines=cosines)  # fmt: skip


def test_divergences_by_hand():
    perfect = one_list([0, 1], [2 / 3, 1 / 3])  # ranks weigh 1 and 1/2
    assert calibration(perfect, 2)[0] == pytest.approx(0, abs=1e-7)
    assert calibration(one_list([2, 2], [2 / 3, 1 / 3, 0]), 2)[0] == pytest.approx(1)
    same, apart = one_list([0, 1], [1, 0], [[2, 3]]), one_list([0, 1], [1, 0], [[8, 9]])
    assert fragmentation(same, 2)[0] == pytest.approx(0, abs=1e-7)
    assert fragmentation(apart, 2)[0] == pytest.approx(1)
    turned = fragmentation(one_list([0, 1], [1, 0], [[3, 2]]), 2)[0]
    p, q, m = (2 / 3, 1 / 3), (1 / 3, 2 / 3), 1 / 2
    expected = sum(a * math.log2(a / m) / 2 for a in (*p, *q))
    assert turned == pytest.approx(math.sqrt(expected))
    assert near_duplicates(perfect, 2)[0] == 0.5  # the second repeats the first


def test_every_metric_has_a_meaning_in_one_line():
    assert all(meaning.endswith((".", ",")) or " " in meaning for meaning in MEANINGS.values())
    assert len(TABLE) * len(CUTS) == len(PER_IMPRESSION)
    assert all(len(meaning) <= 97 for meaning in MEANINGS.values())


def test_rows_that_lack_values_have_their_own_intervals():
    rng = np.random.default_rng(1)
    users = rng.integers(0, 40, 300)
    rows = rng.normal(size=(4, 300))
    rows[1, ::7] = np.nan
    rows[2] = np.nan
    found = row_intervals(rows, users)
    np.testing.assert_allclose(found[0], mean_interval(rows[0], users))
    kept = ~np.isnan(rows[1])
    np.testing.assert_allclose(found[1], mean_interval(rows[1, kept], users[kept]))
    assert np.isnan(found[2]).all()


def test_what_is_unknown_is_left_out_and_json_holds_the_rest(mind_dir):
    data = open_mind(mind_dir)
    for name in ("dev", "test"):
        part = data.split(name)
        scores = np.random.default_rng(0).normal(size=len(part.candidates.values))
        rank = ranks(scores, part.candidates.offsets)
        found = beyond_accuracy(data, name, rank, {"same": rank}, None)
        assert json.loads(json.dumps(found.metrics, allow_nan=False)) == found.metrics
        named = set(found.metrics["metrics"])
        assert not {f"{m}@5" for m in ("vector_diversity", "unexpectedness", "serendipity")} & named
        assert {"calibration@5", "novelty@10", *WHOLE} <= named
        for metric, line in found.metrics["baselines"]["same"].items():
            own = {name: line.pop(name) for name in ("difference", "difference_interval")}
            assert own == {"difference": 0, "difference_interval": [0, 0]}
            assert line == found.metrics["metrics"][metric]


def test_a_split_that_shows_no_known_news_has_no_metrics_beyond_accuracy(mind_dir):
    data = open_mind(mind_dir)
    part = data.split("dev")
    unknown = part.candidates._replace(values=np.ones_like(part.candidates.values))
    data = data._replace(splits=data.splits | {"dev": part._replace(candidates=unknown)})
    rank = ranks(np.zeros(len(unknown.values)), unknown.offsets)
    found = beyond_accuracy(data, "dev", rank, {"same": rank}, None).metrics
    assert found["shown_news"] == 0
    assert found["metrics"] == found["baselines"]["same"] == {}


def test_metrics_of_the_vectors_of_two_plms_are_not_compared(world, tmp_path):
    data, split, _, rank, vectors = world
    runs = []
    for number, some in enumerate((vectors, vectors + 1e-4, -vectors)):
        found = beyond_accuracy(data, "train", rank, {}, some, voices_of(VOICES))
        named = dict(zip(PER_IMPRESSION, found.values.astype(float), strict=True))
        users = pa.chunked_array([pa.array(split.user.astype(str))])
        empty = np.zeros(0)
        runs.append(
            EvaluatedRun(tmp_path / str(number), {"beyond": found.metrics}, empty, users,
                         split.user, empty, {}, named, found.top.news)
        )  # fmt: skip
    assert unlike_metrics(runs[:2]) == {}
    (left_out,) = unlike_metrics(runs).values()
    assert set(left_out) == OF_VECTORS
    assert set(differences(runs[:1], runs[1:2])) == {*PER_IMPRESSION, *WHOLE}
    found = differences(runs[:1], runs[2:], left_out)
    assert set(found) == {*PER_IMPRESSION, *WHOLE} - OF_VECTORS
    assert OF_VECTORS


def test_of_very_many_impressions_some_are_measured(world, monkeypatch):
    data, _, _, rank, vectors = world
    whole = beyond_accuracy(data, "train", rank, {}, vectors)
    monkeypatch.setattr(beyond_results, "MOST", 400)
    some = beyond_accuracy(data, "train", rank, {"same": rank}, vectors)
    kept = ~np.isnan(some.values[PER_IMPRESSION.index("novelty@10")])
    assert 390 < kept.sum() <= 400
    same = [name for name in PER_IMPRESSION if not name.startswith("fragmentation")]
    for name in same:  # fragmentation draws other lists
        row = PER_IMPRESSION.index(name)
        np.testing.assert_allclose(some.values[row, kept], whole.values[row, kept], rtol=1e-5)
    np.testing.assert_array_equal(some.top.news, whole.top.news)


def test_beyond_accuracy_lists_count_in_no_metric(world):
    data, split, _, rank, vectors = world
    ids = split.impression_id.copy()
    ids[-500:] = 0
    flagged = split._replace(impression_id=ids, counts={"beyond_accuracy": 500})
    found = beyond_accuracy(data._replace(splits={"train": flagged}), "train", rank, {}, vectors)
    assert np.isnan(found.values[:, -500:]).all()
    assert not found.top.news[-500:].any()
    top = top_of(split, rank).news[:-500]
    shown = int(shown_news(flagged).sum())
    expected = leave_outs(top, split.user[:-500], shown)
    assert found.metrics["metrics"]["gini@5"]["value"] == expected["gini@5"][0]


def test_impressions_of_one_user_have_no_fragmentation(world):
    data, split, _, rank, _ = world
    alone = split._replace(user=np.zeros_like(split.user))
    found = beyond_accuracy(data._replace(splits={"train": alone}), "train", rank, {}, None)
    assert not {"fragmentation@5", "fragmentation@10"} & set(found.metrics["metrics"])
    assert "novelty@10" in found.metrics["metrics"]


def test_news_of_one_category_have_no_metrics_of_categories(world):
    data, _, _, rank, _ = world
    bare = data._replace(news=pa.table({"category": [""] * len(data.news)}))
    found = beyond_accuracy(bare, "train", rank, {"same": rank}, None).metrics
    for named in (found["metrics"], found["baselines"]["same"]):
        assert not OF_CATEGORIES & set(named)
        assert "fragmentation@10" in named


def test_intervals_of_shares_are_from_0_to_1():
    data, scores, _ = random_data(60, 80, 2)
    rank = ranks(scores, data.split("train").candidates.offsets)
    found = beyond_accuracy(data, "train", rank, {}, None).metrics["metrics"]
    low, high = found["coverage@10"]["interval"]
    assert 0 <= low <= found["coverage@10"]["value"] <= high == 1


def test_a_metric_that_only_the_longer_lists_have_is_shown():
    line = {"value": 0.25, "interval": [0.1, 0.4], "impressions": 9}
    found = {"metrics": {"representation@10": line}, "baselines": {}, "voices": None}
    metrics = {"beyond": found, "baselines": {}}
    cells = [str(*column.cells) for column in beyond_table(metrics).columns]
    assert cells[1:3] == ["", "0.250"]
    assert beyond_rows(metrics)[0]["short"] == ""
    assert beyond_groups(metrics)[0].lines[0].short is None
    notes = " ".join(beyond_notes(metrics))
    assert "Representation counts persons by name" in notes
    assert "Metrics of news vectors need a PLM, baselines and labels; they are left out." in notes


def test_large_numbers_have_two_digits_after_the_point():
    assert short_range([9.85, 10.024]) == "9.850 to 10.02"
    assert short_number(-22.6404, "+") == "-22.64"


def test_evaluate_and_compare_show_them(mind_dir, tmp_path, capsys):
    base = [f"--data.root={mind_dir}", "--split=dev", "--trainer.accelerator=cpu"]
    for name in ("recent", "random"):
        main(["evaluate", f"--scorer={name}", *base, f"--output={tmp_path / name}"])
    said = capsys.readouterr().out
    assert "Beyond accuracy" in said
    assert "freshness, hours" in said
    found = json.loads((tmp_path / "recent" / "metrics.json").read_text())["beyond"]["metrics"]
    assert directions(found) in " ".join(said.split())
    assert "Metrics of news vectors" in said
    page = (tmp_path / "recent" / "report.html").read_text()
    assert "in any split. Less is better." in page
    recent = json.loads((tmp_path / "recent" / "metrics.json").read_text())["beyond"]
    table = pq.read_table(tmp_path / "recent" / "per_impression.parquet")
    ages = table["beyond/freshness@10"].to_numpy()
    assert recent["metrics"]["freshness@10"]["value"] == pytest.approx(np.nanmean(ages))
    main(["compare", str(tmp_path / "recent"), str(tmp_path / "random"), "--json"])
    found = json.loads(capsys.readouterr().out)["beyond"]
    beside = recent["baselines"]["random"]
    for name, line in found.items():
        assert line["a"] == pytest.approx(recent["metrics"][name]["value"], abs=1e-6)
        assert line["difference"] == pytest.approx(beside[name]["difference"], abs=1e-6)
        if name in WHOLE:
            assert line["interval"] == pytest.approx(beside[name]["difference_interval"])
    main(["compare", str(tmp_path / "recent"), str(tmp_path / "random")])
    assert "Beyond accuracy, first 10" in capsys.readouterr().out
    main(["evaluate", "--scorer=random", *base, f"--output={tmp_path / 'x'}", "--beyond=false"])
    assert "beyond" not in json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert "Beyond accuracy" not in capsys.readouterr().out
    main(["compare", str(tmp_path / "recent"), str(tmp_path / "x")])
    assert "Beyond accuracy" not in capsys.readouterr().out


def test_directions_name_only_what_is_shown():
    assert directions(["novelty@10"]) == ""
    assert directions(["novelty@10", "gini@10"]) == "Less is better: Gini of exposure."
    assert directions(["freshness@10", "activation@10"]) == (
        "Less is better: freshness. Freshness is an age. "
        "Neither more nor less is better: activation."
    )
