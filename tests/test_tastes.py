"""Worlds of tastes: their effects, the switches of these, and the oracles that measure them."""

import argparse
import difflib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from newsrec.commands.simulate import add_arguments, run
from newsrec.data.dataset import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.news_file import read_news
from newsrec.errors import UserError
from newsrec.metrics import mind_metrics
from newsrec.simulation import contents, interests, taste_news, tastes
from newsrec.simulation.effects import EFFECTS
from newsrec.simulation.headlines import compose
from newsrec.simulation.oracles import ORACLES, oracle_aucs, oracle_scores
from newsrec.simulation.presets import DAYS, PRESETS
from newsrec.simulation.simulate import simulate
from newsrec.simulation.texts import Texts, invent
from newsrec.simulation.world import make_news

TINY = replace(
    PRESETS["tastes-small"],
    impressions=(600, 300, 300),
    users=(200, 120, 120),
    early_news=150,
    daily_news=(30,) * 15,
)
FILES = sorted(f"{s}/{n}.tsv" for s in ("train", "dev", "test") for n in ("news", "behaviors"))


def make(*without, sizes=TINY, seed=0, titles=None):
    """Return a world and its splits without some effects."""
    rngs = tastes.make_generators(seed)
    world = tastes.make_world(rngs, sizes, [e for e in EFFECTS if e not in without], titles)
    return world, list(tastes.show_splits(rngs, sizes, world))


@pytest.fixture(scope="module")
def tiny():
    return make()


@pytest.fixture(scope="module")
def wide():
    """Many impressions in dev and test, so that AUCs are exact enough to be compared."""
    return make(sizes=replace(TINY, impressions=(300, 8000, 8000), users=(200, 2500, 2500)))


@pytest.fixture
def tiny_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.mark.parametrize("seed", range(4))
def test_signs_and_last_digits_of_axes_do_not_change_a_world(tiny, monkeypatch, seed):
    """Machines find different signs, and sums in another order differ in the last digits."""
    rng, exact = np.random.default_rng(seed), contents.svds

    def another(*args, **options):
        u, s, axes = exact(*args, **options)
        flipped = axes * rng.choice([-1, 1], size=(len(axes), 1))
        return u, s, flipped + rng.normal(0, 1e-13, axes.shape)

    monkeypatch.setattr(contents, "svds", another)
    world, splits = make()
    for ours, theirs in zip(world.news.contents, tiny[0].news.contents, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(splits, tiny[1], strict=True):
        np.testing.assert_array_equal(ours.shown.labels, theirs.shown.labels)
        np.testing.assert_array_equal(ours.histories.values, theirs.histories.values)


HASH_OF_TINY = """
import hashlib, sys
import test_tastes
world, splits = test_tastes.make()
found = hashlib.sha256("".join(world.news.lines()).encode())
for split in splits:
    for values in (split.shown.user, *split.shown.candidates, split.shown.labels, *split.histories):
        found.update(values.tobytes())
print(found.hexdigest())
"""


@pytest.mark.slow
def test_a_cpu_with_other_instructions_gives_the_same_world():
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    optional = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
    plain = {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": optional}
    hashes = [
        subprocess.run(
            [sys.executable, "-c", HASH_OF_TINY],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more},
            cwd=Path(__file__).parent, check=True, capture_output=True, text=True,
        ).stdout
        for more in ({}, plain)
    ]  # fmt: skip
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 65


def auc(scores, split):
    shown = split.shown
    return mind_metrics(np.float32(scores), shown.labels, shown.candidates.offsets)["auc"]


def files_of(root):
    return {name: (root / name).read_bytes() for name in (*FILES, "world.json")}


def write_news(path, rows):
    lines = [f"N{i}\t{c}\t{s}\t{t}\t{a}\tu\t[]\t[]\n" for i, (c, s, t, a) in enumerate(rows)]
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def invented_rows(size=700, seed=5):
    return [*zip(*invent(np.random.default_rng(seed), size, teasers=True), strict=True)]


# Files


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_preset, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        simulate(tmp_path / name, "tiny", seed)
    one, again, other = (files_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert all(one[name] != other[name] for name in FILES)


def test_all_splits_have_labels_and_can_be_opened(tiny_preset, tmp_path):
    world = simulate(tmp_path / "world", "tiny")
    assert world == json.loads((tmp_path / "world" / "world.json").read_text())
    data = open_mind(tmp_path / "world")
    for name, split in data.splits.items():
        assert len(split.impression_id) == world["splits"][name]["impressions"]
        clicks = np.add.reduceat(split.labels, split.candidates.offsets[:-1], dtype=np.int64)
        assert clicks.min() == 1
        assert (clicks < split.candidates.lengths).all()
        days = np.unique(split.time.astype("datetime64[D]")) - np.datetime64("2019-11-09")
        assert DAYS[name][0] <= days.min().astype(int) <= days.max().astype(int) < DAYS[name][1]


def test_the_command_prints_the_oracles_and_keeps_them(tiny_preset, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    argv = ["--output", str(tmp_path / "world"), "--preset", "tiny"]
    run(parser.parse_args([*argv, "--without", "position", "freshness"]))
    printed = capsys.readouterr().out
    world = json.loads((tmp_path / "world" / "world.json").read_text())
    assert world["without"] == ["freshness", "position"]
    for split in ("dev", "test"):
        assert list(world["oracles"][split]) == list(ORACLES)
        for name, value in world["oracles"][split].items():
            assert f"{value:.4f}  {name}: {ORACLES[name]}" in printed
        ceiling = world["ceiling"][split]["auc"]
        assert world["oracles"][split]["no_position"] == pytest.approx(ceiling, abs=1e-6)


# Effects


def test_users_have_one_to_six_interests_of_different_weight(tiny):
    weight = tiny[0].interests.weight
    number = (weight > 0).sum(axis=2)
    assert set(np.unique(number)) == {1, 2, 3, 4, 5, 6}
    assert (number == number[:, :1]).all()
    assert weight.max() <= 1
    several = number[:, 0] > 1
    assert (weight[several].max(axis=2) > weight[several, :, :2].min(axis=2)).mean() > 0.9


def test_interests_drift_a_little_more_each_week(tiny):
    world, _ = tiny
    weight, news = world.interests.weight, world.interests.news
    real = weight[:, 0] > 0
    kept = [(news[:, week] == news[:, 0])[real].mean() for week in range(interests.NUM_WEEKS)]
    assert kept[0] == 1
    assert (np.diff(kept) < 0).all()
    assert kept[1] == pytest.approx(1 - interests.REPLACED, abs=0.02)
    together = [np.corrcoef(weight[:, week][real], weight[:, 0][real])[0, 1] for week in (1, 3, 5)]
    assert together[0] > together[1] > together[2]


def test_news_attracts_by_the_best_matching_interest(tiny):
    world, splits = tiny
    shown, parts = splits[1].shown, splits[1].parts
    owner, vectors = shown.candidates.owners(), world.news.contents.full.astype(float)
    for place in range(0, len(shown.labels), 97):
        row, user = shown.candidates.values[place], shown.user[owner[place]]
        week = int((shown.day[owner[place]] + 28) // 7)
        matches = []
        for k in range(6):
            cosine = min(vectors[world.interests.news[user, week, k]] @ vectors[row], 1)
            match = np.exp((cosine - 1) / interests.MATCH_WIDTH)
            matches.append(world.interests.weight[user, week, k] * match)
        assert parts.taste[place] == pytest.approx(tastes.TASTE_SCALE * max(matches), rel=1e-4)


def test_clicks_are_drawn_from_the_utilities(tiny):
    # The utility plus the noise decides, so the click shares of a softmax over each list follow.
    _, splits = make(sizes=replace(TINY, impressions=(20_000, 300, 300)))
    shown = splits[0].shown
    starts, owner = shown.candidates.offsets[:-1], shown.candidates.owners()
    one = np.add.reduceat(shown.labels, starts, dtype=np.int64)[owner] == 1
    weight = np.exp(shown.utility.astype(float))
    expected = weight / np.add.reduceat(weight, starts)[owner]
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
        part = one & (expected >= low) & (expected < high)
        assert shown.labels[part].mean() == pytest.approx(expected[part].mean(), abs=0.02)


def test_the_file_hides_the_order_in_which_a_list_was_seen(wide):
    _, splits = wide
    for split in splits[1:]:
        shown, position = split.shown, split.parts.position
        # In the file, a constant scorer, whose ties are broken by place, gets half.
        assert auc(np.zeros(len(shown.labels)), split) == pytest.approx(0.5, abs=0.01)
        # The order that the user saw is another one; it is a permutation of each list.
        owner, lengths = shown.candidates.owners(), shown.candidates.lengths
        place = np.rint(np.exp(-position / tastes.POSITION_SCALE) - 1).astype(int)
        order = np.lexsort((place, owner))
        assert (place[order] == np.arange(len(place)) - shown.candidates.offsets[owner]).all()
        in_file = np.arange(len(place)) - shown.candidates.offsets[owner]
        centred = [p / (lengths[owner] - 1) - 0.5 for p in (place, in_file)]
        assert abs(np.corrcoef(*centred)[0, 1]) < 0.01
        assert auc(-place, split) > 0.51


def test_new_topics_appear_in_the_test_week_only(tiny):
    world, splits = tiny
    late = world.news.is_late
    assert 0.01 < late.mean() < 0.08
    names = np.array(world.news.texts.subcategory)
    assert not set(names[late]) & set(names[~late])
    assert (world.news.birth[late] >= DAYS["test"][0]).all()
    for split in splits[:2]:
        assert not late[split.shown.candidates.values].any()
        assert not late[split.histories.values].any()
    assert late[splits[2].shown.candidates.values].mean() > 0.02
    assert not late[world.interests.news[:, :-1]].any()


def test_near_duplicates_repeat_a_news_item_of_the_week_before(tiny):
    news = tiny[0].news
    twins = np.flatnonzero(news.original >= 0)
    assert len(twins) == round(taste_news.DUPLICATES * TINY.num_news)
    originals = news.original[twins]
    assert (news.original[originals] == -1).all()
    age = news.birth[twins] - news.birth[originals]
    assert age.min() > 0
    assert np.mean(age <= taste_news.TWIN_DAYS) > 0.8  # others repeat a repeat's original
    for twin, original in zip(twins, originals, strict=True):
        a, b = (news.texts.title[row] for row in (twin, original))
        assert a != b
        assert difflib.SequenceMatcher(None, a.split(), b.split()).ratio() > 0.7
        for column in ("category", "subcategory", "abstract"):
            of_news = getattr(news.texts, column)
            assert of_news[twin] == of_news[original]
    cosine = (news.contents.full[twins] * news.contents.full[originals]).sum(axis=1)
    assert np.median(cosine) > 0.99


def test_users_avoid_what_they_read_a_near_duplicate_of(tiny):
    world, splits = tiny
    original = world.news.original
    group = np.where(original >= 0, original, np.arange(len(original)))
    avoided = 0
    for split in splits:
        shown = split.shown
        for place, (row, owner) in enumerate(
            zip(shown.candidates.values, shown.candidates.owners(), strict=True)
        ):
            user = shown.user[owner]
            begin, end = split.histories.offsets[user : user + 2]
            read = set(split.histories.values[begin:end].tolist()) - {row}
            twin = any(group[other] == group[row] for other in read)
            assert split.parts.duplicates[place] == -tastes.READ_BEFORE * twin
            avoided += twin
    assert avoided > 10


def test_a_repeated_click_is_no_near_duplicate_of_itself():
    histories = Ragged(np.array([3, 1, 2]), to_offsets(np.array([1, 2, 0])))
    original = np.array([-1, 0, 0, -1])
    user, news = np.array([0, 0, 1, 1, 1, 2]), np.array([3, 0, 0, 1, 3, 0])
    found = tastes.has_read_twin(histories, original, user, news)
    assert found.tolist() == [False, False, True, True, False, False]
    nothing = Ragged(np.array([], dtype=np.int64), to_offsets(np.zeros(3, dtype=np.int64)))
    assert not tastes.has_read_twin(nothing, original, user, news).any()


def test_appeal_can_be_read_from_titles_in_part(tiny):
    news = tiny[0].news
    assert news.appeal.std() == pytest.approx(taste_news.READ_APPEAL)
    assert news.hidden.std() == pytest.approx(taste_news.HIDDEN_APPEAL, rel=0.1)
    shown = [news.appeal[[("?" in t) == asks for t in news.texts.title]] for asks in (True, False)]
    opinion = news.appeal[["opinion" in title.lower() for title in news.texts.title]]
    assert opinion.mean() < news.appeal.mean() - 0.3 * taste_news.READ_APPEAL
    assert len(shown[0]) > 10
    twins = np.flatnonzero(news.original >= 0)
    assert np.corrcoef(news.appeal[twins], news.appeal[news.original[twins]])[0, 1] > 0.7


def test_teasers_leave_the_topic_to_the_abstract():
    plain = invent(np.random.default_rng(0), 400, teasers=False)
    teased = invent(np.random.default_rng(0), 400, teasers=True)
    other = [a != b for a, b in zip(plain.title, teased.title, strict=True)]
    assert np.mean(other) == pytest.approx(0.25, abs=0.06)
    assert plain.abstract == teased.abstract
    assert plain[:2] == teased[:2]


def test_titles_have_more_variety_than_those_of_the_other_worlds():
    def pairs_of_words(titles):
        return {pair for title in titles for pair in itertools.pairwise(title.split())}

    varied = invent(np.random.default_rng(0), 900, teasers=True).title
    rng = np.random.default_rng(0)
    news = make_news(rng, PRESETS["demo"])
    plain = [line.split("\t")[3] for line in compose(rng, PRESETS["demo"], news)][:900]
    assert len(set(varied)) == 900
    assert len(pairs_of_words(varied)) > 1.1 * len(pairs_of_words(plain))
    of_words = [len({w for t in titles for w in t.lower().split()}) for titles in (varied, plain)]
    assert of_words[0] > 1.25 * of_words[1]
    words = [len(title.split()) for title in varied]
    assert 8 < np.mean(words) < 12
    assert max(words) <= 25


# Switches


def same_lists(one, other):
    return all(
        np.array_equal(a.shown.candidates.values, b.shown.candidates.values)
        and np.array_equal(a.shown.user, b.shown.user)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("effect", ["position", "freshness", "appeal", "drift", "interests"])
def test_a_switch_changes_only_what_it_says(tiny, effect):
    (world, splits), (plain, plain_splits) = tiny, make(effect)
    assert plain.news.lines() == world.news.lines()
    assert same_lists(splits, plain_splits)
    differ = {
        name
        for name in tastes.Parts._fields
        if not np.array_equal(getattr(splits[0].parts, name), getattr(plain_splits[0].parts, name))
    }
    changed = {
        "position": {"position"},
        "freshness": {"freshness"},
        "appeal": {"appeal", "hidden"},
        "drift": {"taste"},
        "interests": {"taste"},
    }[effect]
    # Histories follow appeal and interests, and so does what was read before.
    assert (
        changed
        <= differ
        <= changed | (set() if effect in ("position", "freshness") else {"duplicates"})
    )
    for name in changed - {"taste"}:
        assert not getattr(plain_splits[0].parts, name).any()
    assert not np.array_equal(splits[0].shown.labels, plain_splits[0].shown.labels)
    if effect == "drift":
        for now, before in zip(plain.interests, world.interests, strict=True):
            assert (now == before[:, :1]).all()
    if effect == "interests":
        assert (plain.interests.weight[:, :, 1:] == 0).all()
        assert (plain.interests.weight[:, :, 0] == world.interests.weight[:, :, 0]).all()


def test_without_duplicates_every_news_item_keeps_its_own_text(tiny):
    (world, splits), (plain, plain_splits) = tiny, make("duplicates")
    assert (plain.news.original == -1).all()
    assert same_lists(splits, plain_splits)
    twin = world.news.original >= 0
    same = [a == b for a, b in zip(world.news.lines(), plain.news.lines(), strict=True)]
    assert not np.array(same)[twin].any()
    assert np.array(same)[~twin].all()
    assert not any(split.parts.duplicates.any() for split in plain_splits)


def test_without_new_topics_the_same_news_appears_on_all_days():
    late, plain = make("duplicates")[0].news, make("duplicates", "new_topics")[0].news
    assert sorted(late.texts.title) == sorted(plain.texts.title)
    assert not plain.is_late.any()
    moved = [a != b for a, b in zip(late.texts.title, plain.texts.title, strict=True)]
    assert np.mean(moved) < 0.12
    names = np.array(plain.texts.subcategory)
    began = set(np.array(late.texts.subcategory)[late.is_late])
    assert (plain.birth[np.isin(names, list(began))] < 0).any()


def test_without_abstracts_they_tell_nothing_more():
    news = make("abstracts")[0].news
    np.testing.assert_array_equal(news.contents.full, news.contents.no_abstract)
    emptied = news.texts._replace(abstract=[""] * len(news.texts.title))
    again = contents.read_contents(emptied, abstracts=True)
    np.testing.assert_array_equal(again.full, news.contents.full)


# Oracles


def test_the_ceiling_is_above_each_oracle_and_the_oracles_are_in_order(wide):
    world, splits = wide
    for split in splits[1:]:
        ceiling = auc(split.shown.utility, split)
        found = oracle_aucs(world, split)
        assert list(found) == list(ORACLES)
        assert 0.76 < ceiling < 0.86
        assert max(found.values()) < ceiling + 0.001
        assert found["readable"] < found["no_position"] < ceiling - 0.001
        assert found["title_only"] < found["no_abstracts"] < ceiling - 0.001
        assert found["mean_interest"] < found["single_vector"] < ceiling - 0.005
        assert found["mean_click"] < found["nearest_clicks"] < found["single_vector"]
        for name in ("no_appeal", "no_freshness", "no_drift", "no_tastes"):
            assert found[name] < ceiling - 0.001, name
    assert found["no_new_topics"] < ceiling - 0.002  # in test, the last


def fit(columns, target):
    inputs = np.stack([np.ones(len(target)), *columns], axis=1)
    return inputs @ np.linalg.pinv(inputs) @ target


def test_oracles_are_those_of_a_plain_loop():
    world, splits = make(sizes=replace(TINY, impressions=(60, 40, 40), users=(30, 15, 15)))
    split = splits[2]
    found = dict(oracle_scores(world, split))
    parts, shown, news = split.parts, split.shown, world.news
    utility = sum(parts)
    np.testing.assert_allclose(shown.utility, utility, rtol=1e-5, atol=1e-5)
    for name, lacks in (
        ("no_position", ("position",)),
        ("readable", ("position", "hidden")),
        ("no_appeal", ("appeal", "hidden")),
        ("no_freshness", ("freshness",)),
        ("no_duplicates", ("duplicates",)),
        ("no_tastes", ("taste", "duplicates")),
    ):
        score = sum(part for field, part in parts._asdict().items() if field not in lacks)
        np.testing.assert_allclose(found[name], score, atol=1e-9, err_msg=name)

    full, no_abstract, title = (vectors.astype(float) for vectors in news.contents)
    columns = {
        name: []
        for name in ("first", "title", "no_abstract", "vector", "interest", "mean", "nearest")
    }
    vectors = {}
    inputs = np.concatenate([full, np.ones((len(full), 1))], axis=1)

    def best(user, week, vector):
        weights, liked = world.interests.weight[user, week], world.interests.news[user, week]
        cosines = [min(full[n] @ vector, 1) for n in liked]
        matches = [np.exp((c - 1) / interests.MATCH_WIDTH) for c in cosines]
        return max(w * m for w, m in zip(weights, matches, strict=True))

    for row, owner in zip(shown.candidates.values, shown.candidates.owners(), strict=True):
        user, week = shown.user[owner], 5
        columns["first"].append(best(user, 0, full[row]))
        columns["title"].append(best(user, week, title[row]))
        columns["no_abstract"].append(best(user, week, no_abstract[row]))
        if user not in vectors:
            target = np.array([best(user, week, vector) for vector in full])
            # Ridge regression is least squares with a row more for each input.
            more = np.concatenate([inputs, np.eye(inputs.shape[1])])
            padded = np.concatenate([target, np.zeros(inputs.shape[1])])
            vectors[user] = np.linalg.lstsq(more, padded, rcond=None)[0]
        columns["vector"].append(vectors[user] @ inputs[row])
        weights, liked = world.interests.weight[user, week], world.interests.news[user, week]
        mean = sum(w * full[n] for w, n in zip(weights, liked, strict=True)) / weights.sum()
        columns["interest"].append(mean @ full[row])
        begin, end = split.histories.offsets[user : user + 2]
        cosines = sorted(full[n] @ full[row] for n in split.histories.values[begin:end])
        columns["mean"].append(np.mean(cosines) if cosines else 0)
        columns["nearest"].append(np.mean(cosines[-5:]) if cosines else 0)
    for name, used in (
        ("no_drift", ["first"]),
        ("no_abstracts", ["no_abstract"]),
        ("title_only", ["title"]),
        ("single_vector", ["vector"]),
        ("mean_interest", ["interest"]),
        ("mean_click", ["mean"]),
        ("nearest_clicks", ["mean", "nearest"]),
    ):
        expected = utility - parts.taste + fit([np.array(columns[c]) for c in used], parts.taste)
        np.testing.assert_allclose(found[name], expected, atol=2e-3, err_msg=name)
    late = news.is_late[shown.candidates.values]
    known = np.where(late, np.mean(parts.taste[~late]), parts.taste)
    np.testing.assert_allclose(found["no_new_topics"], utility - parts.taste + known, atol=1e-6)
    np.testing.assert_array_equal(found["tastes_only"], parts.taste)


# Titles from a file


def test_titles_categories_and_abstracts_come_from_the_file(tiny_preset, tmp_path):
    rows = invented_rows()
    rows[3] = (
        "news",
        "newsus",
        'He said "no" \u2028 to \U0001f600 caf\u00e9s',
        '"quoted" abstract',
    )
    path = write_news(tmp_path / "news.tsv", [*rows, *rows[:50]])
    world = simulate(tmp_path / "world", "tiny", titles=path, without=["duplicates"])
    assert len(world["titles"]) == 64
    table = read_news(path)
    source = {*zip(*(table.column(c).to_pylist() for c in Texts._fields), strict=True)}
    data = open_mind(tmp_path / "world")
    written = [*zip(*(data.news[c].to_pylist() for c in Texts._fields), strict=True)]
    assert set(written) <= source
    assert len({row[2] for row in written}) == len(written)
    simulate(tmp_path / "again", "tiny", titles=path, without=["duplicates"])
    assert files_of(tmp_path / "again") == files_of(tmp_path / "world")


def test_words_that_no_other_news_has_tell_nothing(tmp_path):
    rows = invented_rows(80)
    rows[0] = ("", "", "zyxq", "")
    texts = Texts(*(list(column) for column in zip(*rows, strict=True)))
    found = contents.read_contents(texts, abstracts=True)
    assert np.isfinite(found.full).all()
    norms = np.linalg.norm(found.full, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


def bad_files(tmp_path):
    rows = invented_rows()
    cut = write_news(tmp_path / "cut.tsv", rows)
    cut.write_text(cut.read_text().replace("\tu\t[]\t[]\n", "\n", 1))
    few = write_news(tmp_path / "few.tsv", rows[:100])
    same = write_news(tmp_path / "same.tsv", [(*row[:2], "One title", row[3]) for row in rows])
    odd = [("", "", str(i), "") for i in range(700)]
    (tmp_path / "binary.tsv").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "latin.tsv").write_bytes("N1\ta\tb\tcaf\xe9\t\tu\t[]\t[]\n".encode("latin-1"))
    return {
        tmp_path / "none.tsv": "no such file",
        tmp_path: "is a folder",
        cut: "line 1",
        few: "has 100 different titles; this preset needs 600",
        same: "has 1 different titles",
        write_news(tmp_path / "odd.tsv", odd): "too few to tell",
        tmp_path / "binary.tsv": "binary.tsv",
        tmp_path / "empty.tsv": "is empty",
        tmp_path / "latin.tsv": "UTF-8",
    }


def test_a_file_that_gives_no_titles_is_refused_with_its_name_and_a_reason(tiny_preset, tmp_path):
    for path, reason in bad_files(tmp_path).items():
        with pytest.raises(UserError) as error:
            simulate(tmp_path / "world", "tiny", titles=path)
        assert str(path) in str(error.value) or "--titles" in str(error.value)
        assert reason in str(error.value), path
        assert not (tmp_path / "world").exists()


def test_bad_lines_of_titles_can_be_left_out(tiny_preset, tmp_path):
    path = write_news(tmp_path / "news.tsv", invented_rows())
    path.write_text(path.read_text() + "N9999\tonly three\tcolumns\n")
    with pytest.raises(UserError, match=r"line 701.*--on_bad_line drop"):
        simulate(tmp_path / "world", "tiny", titles=path)
    simulate(tmp_path / "world", "tiny", titles=path, on_bad_line="drop")
    assert (tmp_path / "world" / "world.json").is_file()


def test_options_of_tastes_are_refused_elsewhere(tmp_path):
    with pytest.raises(UserError, match=r"'demo' cannot use --titles.*tastes-small, tastes"):
        simulate(tmp_path / "world", "demo", titles=tmp_path / "news.tsv")
    with pytest.raises(UserError, match=r"'medium' cannot use --without"):
        simulate(tmp_path / "world", "medium", without=["drift"])
    with pytest.raises(UserError, match=r"'drifts'.*interests, drift"):
        simulate(tmp_path / "world", "tastes-small", without=["drifts"])


def test_presets_have_the_sizes_that_a_comparison_needs():
    assert PRESETS["tastes-small"].impressions[0] == 8000
    assert PRESETS["tastes-small"].num_news <= 1900  # so that 2,000 titles are enough
    assert PRESETS["tastes"].impressions[1:] == (10_000, 10_000)
