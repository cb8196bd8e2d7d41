import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS, samples
from newsrec.data.batch import Catalogue
from newsrec.data.dataset import open_mind
from newsrec.data.draws import counter_uniform, draw_candidates, draw_skipped
from newsrec.data.ragged import Ragged
from newsrec.data.samplers import BatchKey, EvalBatches, TrainBatches
from newsrec.data.samples import (
    EvalImpressions,
    TrainSamples,
    count_tokens,
    index_samples,
)
from newsrec.data.states import RunStates, TokenStates

UNKNOWN = 1


@pytest.fixture
def data(mind_dir):
    return open_mind(mind_dir)


def made_catalogue(num_news):
    """Tokens that name their news item: row ``r`` is ``r`` two to six times."""
    lengths = torch.tensor([0, 0] + [2 + (7 * r) % 5 for r in range(FIRST_NEWS, num_news)])
    token_ids = torch.arange(num_news, dtype=torch.int32)[:, None] * (
        torch.arange(8) < lengths[:, None]
    )
    return Catalogue(token_ids.int(), lengths, torch.arange(num_news))


def lists(rows):
    return [
        rows.values[start:end].tolist()
        for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]


def impressions_of(split):
    """Yield history, candidates and labels of each impression, in the order of the file."""
    histories, candidates = lists(split.histories), lists(split.candidates)
    labels = [[None] * len(c) for c in candidates]
    if split.labels is not None:
        labels = lists(Ragged(split.labels, split.candidates.offsets))
    for row, shown, label in zip(split.history, candidates, labels, strict=True):
        yield histories[row], shown, label


# index_samples


@pytest.mark.parametrize("name", ["train", "dev"])
def test_samples_are_the_known_clicks_of_impressions_with_a_known_skip(data, name):
    expected, left_out = [], Counter(unknown_click=0, no_known_skipped=0)
    for i, (_, shown, labels) in enumerate(impressions_of(data.split(name))):
        skips = [n for n, label in zip(shown, labels, strict=True) if not label and n != UNKNOWN]
        for news, label in zip(shown, labels, strict=True):
            if label and news == UNKNOWN:
                left_out["unknown_click"] += 1
            elif label and not skips:
                left_out["no_known_skipped"] += 1
            elif label:
                expected.append((i, news))

    index = index_samples(data.split(name))
    found = zip(index.impression.tolist(), index.click.tolist(), strict=True)
    assert list(found) == expected
    assert index.left_out == left_out
    assert sum(left_out.values()) > 0
    assert len(expected) + sum(left_out.values()) == data.split(name).counts["clicks"]


def test_an_unknown_click_is_counted_once_even_if_nothing_was_skipped(data):
    split = data.split("dev")._replace(
        candidates=Ragged(np.array([UNKNOWN, 5, 6, UNKNOWN, 7, 8]), np.array([0, 1, 2, 4, 6])),
        labels=np.array([1, 1, 1, 0, 1, 0], dtype=np.int8),
    )
    index = index_samples(split)
    assert index.left_out == {"unknown_click": 1, "no_known_skipped": 2}
    assert (index.impression.tolist(), index.click.tolist()) == ([3], [7])


def test_a_split_without_impressions_has_no_samples(data):
    nothing = np.zeros(0, dtype=np.int32)
    split = data.split("train")._replace(
        history=nothing, candidates=Ragged(nothing, np.zeros(1, int)), labels=nothing
    )
    index = index_samples(split)
    assert (len(index.impression), len(index.click)) == (0, 0)
    assert index.left_out == {"unknown_click": 0, "no_known_skipped": 0}


@pytest.mark.parametrize("block", [1, 3, 40, 41])
def test_samples_do_not_depend_on_how_many_impressions_are_looked_at_together(
    data, monkeypatch, block
):
    split = data.split("train")
    catalogue = made_catalogue(data.num_news).token_lengths.numpy()
    whole = index_samples(split)
    tokens = count_tokens(split, whole, catalogue, 3, 4)
    monkeypatch.setattr(samples, "BLOCK", block)
    index = index_samples(split)
    assert index.left_out == whole.left_out
    for part, expected in zip(
        (*index[:2], *count_tokens(split, index, catalogue, 3, 4)),
        (*whole[:2], *tokens),
        strict=True,
    ):
        assert part.dtype == np.int32
        assert part.tolist() == expected.tolist()


# count_tokens


@pytest.mark.parametrize("max_history", [1, 3, 50])
@pytest.mark.parametrize("npratio", [1, 4])
def test_a_sample_counts_its_history_its_click_and_the_longest_skip_for_each_it_draws(
    data, max_history, npratio
):
    split = data.split("train")
    lengths = made_catalogue(data.num_news).token_lengths.numpy()
    index, impressions = index_samples(split), list(impressions_of(split))
    tokens = count_tokens(split, index, lengths, max_history, npratio)
    for i, news, own, of_history in zip(*index[:2], *tokens, strict=True):
        clicked, shown, labels = impressions[i]
        skips = [lengths[n] for n, label in zip(shown, labels, strict=True) if not label]
        assert own == lengths[news] + npratio * max(skips)
        assert of_history == lengths[clicked[-max_history:]].sum()
    assert tokens.largest == (tokens.own + tokens.history).max()


def test_impressions_that_show_nothing_count_nothing(data):
    split = data.split("dev")._replace(
        history=np.zeros(4, int),
        candidates=Ragged(np.array([3, 5, 4, 6]), np.array([0, 0, 2, 2, 4])),
        labels=np.array([1, 0, 0, 1], dtype=np.int8),
    )
    lengths = np.array([0, 0, 9, 1, 2, 3, 4])
    index = index_samples(split)
    assert index.impression.tolist() == [1, 3]
    own = count_tokens(split, index, np.pad(lengths, (0, 99)), 1, 2).own
    assert own.tolist() == [1 + 2 * 3, 4 + 2 * 2]


# draw_skipped and counter_uniform


counts = st.lists(st.integers(0, 30), max_size=12)
seeds = st.integers(0, 2**32 - 1)


@given(counts, st.integers(1, 9), seeds, st.integers(0, 1000), st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_skips_are_distinct_and_missing_only_where_there_are_too_few(
    num_skipped, npratio, seed, epoch, start
):
    sample = np.arange(start, start + len(num_skipped))
    drawn = draw_skipped(np.array(num_skipped, dtype=np.int64), npratio, seed, epoch, sample)
    assert drawn.shape == (len(num_skipped), npratio)
    assert drawn.dtype == np.int64
    for row, number in zip(drawn.tolist(), num_skipped, strict=True):
        real = row[: min(number, npratio)]
        assert row[len(real) :] == [-1] * (npratio - len(real))
        assert real == sorted(set(real))
        assert all(0 <= place < number for place in real)


@given(counts, st.integers(1, 5), seeds, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_skips_do_not_depend_on_who_shares_the_batch(num_skipped, npratio, seed, random):
    num_skipped = np.array(num_skipped, dtype=np.int64)
    sample = np.arange(len(num_skipped)) * 3
    together = draw_skipped(num_skipped, npratio, seed, 1, sample)
    order = random.sample(range(len(num_skipped)), len(num_skipped))
    shuffled = draw_skipped(num_skipped[order], npratio, seed, 1, sample[order])
    assert shuffled.tolist() == together[order].tolist()
    for i in range(len(num_skipped)):
        alone = draw_skipped(num_skipped[[i]], npratio, seed, 1, sample[[i]])
        assert alone.tolist() == together[[i]].tolist()


def test_skips_are_those_of_earlier_versions():
    # Runs are repeated by seed: another draw here is another published number.
    drawn = draw_skipped(np.array([9, 40, 2, 0, 5]), 4, 42, 1, np.array([0, 1, 2, 3, 2**31]))
    assert drawn.tolist() == [
        [0, 2, 4, 5],
        [21, 22, 23, 39],
        [0, 1, -1, -1],
        [-1, -1, -1, -1],
        [0, 1, 2, 4],
    ]


def test_skips_change_with_seed_and_epoch_and_sample():
    many, sample = np.full(1000, 50), np.arange(1000)
    base = draw_skipped(many, 4, 42, 0, sample)
    assert (base == draw_skipped(many, 4, 42, 0, sample)).all()
    for other in (
        draw_skipped(many, 4, 43, 0, sample),
        draw_skipped(many, 4, 42, 1, sample),
        draw_skipped(many, 4, 42, 0, sample + 1),
        draw_skipped(many, 4, 0, 42, sample),  # (seed, epoch) is not their sum
    ):
        assert (base == other).all(axis=1).mean() < 0.01
    assert len(np.unique(base, axis=0)) > 990


@pytest.mark.parametrize("sample", [np.arange(60_000), 60_000 - np.arange(60_000) * 64])
def test_every_set_of_skips_is_equally_likely(sample):
    drawn = draw_skipped(np.full(60_000, 6), 3, 42, 3, np.abs(sample))
    seen = Counter(map(tuple, drawn.tolist()))
    sets = list(itertools.combinations(range(6), 3))
    assert set(seen) == set(sets)
    expected = 60_000 / len(sets)
    chi_square = sum((seen[s] - expected) ** 2 / expected for s in sets)
    assert chi_square < 43.8  # 19 degrees of freedom, p = .001


def test_draws_of_neighbouring_samples_and_epochs_are_unrelated():
    sample = np.arange(100_000)
    one, two = counter_uniform(42, 0, sample, 0), counter_uniform(42, 1, sample, 0)
    for a, b in ((one[:-1], one[1:]), (one, two), (one, counter_uniform(42, 0, sample, 1))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.013  # four standard deviations


def test_counters_give_uniform_numbers_without_collisions():
    numbers = counter_uniform(42, 7, np.arange(1_000_000), 0)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == 1_000_000
    expected = 10_000
    cells = np.bincount((numbers * 100).astype(int), minlength=100)
    assert ((cells - expected) ** 2 / expected).sum() < 148  # 99 degrees of freedom, p = .001
    assert abs(numbers.mean() - 0.5) < 0.0012


def test_a_number_is_the_same_alone_and_in_an_array():
    sample = np.arange(5)
    numbers = counter_uniform(3, 1, sample, 2)
    assert numbers.tolist() == [counter_uniform(3, 1, i, 2)[0] for i in range(5)]
    assert numbers.tolist() == counter_uniform(np.full(5, 3), np.int32(1), sample, 2).tolist()
    assert numbers.tolist() == counter_uniform(3, 1, sample.astype(np.int32), 2).tolist()
    grid = counter_uniform(sample[:, None], sample)
    assert grid.shape == (5, 5)
    assert len(np.unique(grid)) == 25  # (1, 2) is not (2, 1)


# draw_candidates


labelled = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=9).map(lambda row: [*row, 1, 0]),
    min_size=1,
    max_size=6,
)


def flat(rows):
    return Ragged(np.array(list(itertools.chain(*rows))), np.cumsum([0, *map(len, rows)]))


@given(labelled, st.integers(2, 14), seeds, st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_candidates_are_drawn_as_by_a_loop(rows, most, seed, epoch):
    impression = np.arange(len(rows)) * 7
    kept = lists(Ragged(draw_candidates(flat(rows), most, seed, epoch, impression), flat(rows)[1]))
    for number, row, keep in zip(impression, rows, kept, strict=True):
        uniform = counter_uniform(seed, epoch, number, np.arange(len(row))).tolist()
        order = sorted(range(len(row)), key=uniform.__getitem__)
        clicks = [i for i in order if row[i]][: most - 1]
        skips = [i for i in order if not row[i]][: most - len(clicks)]
        assert [i for i, k in enumerate(keep) if k] == sorted(clicks + skips)


def test_every_skipped_candidate_is_drawn_equally_often():
    labels = flat([[1, 0, 0, 0, 0, 0, 0]] * 30_000)
    keep = draw_candidates(labels, 4, 42, 1, np.arange(30_000)).reshape(-1, 7)
    assert keep[:, 0].all()
    assert (keep.sum(axis=1) == 4).all()
    shares = keep[:, 1:].mean(axis=0)
    np.testing.assert_allclose(shares, 0.5, atol=0.012)  # four standard deviations
    again = draw_candidates(labels, 4, 42, 2, np.arange(30_000)).reshape(-1, 7)
    assert (keep == again).all(axis=1).mean() < 0.06  # one in 20 sets is the same by chance


# TrainSamples


def read_back(batch, catalogue):
    """Return a batch's news items by catalogue row, in its order, from the tokens alone."""
    assert batch.token_ids[:FIRST_NEWS].tolist() == [[0] * batch.token_ids.shape[1]] * 2
    rows = [0, 1, *batch.token_ids[FIRST_NEWS:, 0].tolist()]
    for ids, length, row in zip(batch.token_ids, batch.token_lengths, rows, strict=True):
        assert length == catalogue.token_lengths[row]
        assert ids[:length].tolist() == catalogue.token_ids[row, :length].tolist()
        assert not ids[length:].any()
    return np.array(rows)


@pytest.mark.parametrize("max_history", [1, 3, 50])
@pytest.mark.parametrize("npratio", [1, 4])
def test_a_batch_holds_what_a_loop_over_its_samples_finds(data, max_history, npratio):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    index = index_samples(split)
    dataset = TrainSamples(split, index, catalogue, max_history, npratio, seed=42)
    impressions = list(impressions_of(split))
    too_few = 0
    for key in TrainBatches(len(dataset), 8, seed=42):
        batch = dataset[key]
        rows = read_back(batch, catalogue)
        history, candidates = rows[batch.history], rows[batch.candidates]
        for b, sample in enumerate(key.samples):
            clicked, shown, labels = impressions[index.impression[sample]]
            kept = clicked[-max_history:]
            found = history[batch.user[b]].tolist()
            assert found == kept + [0] * (len(found) - len(kept))

            assert candidates[b, 0] == index.click[sample]
            assert labels[shown.index(candidates[b, 0])] == 1
            skips = [n for n, y in zip(shown, labels, strict=True) if y == 0 and n != UNKNOWN]
            drawn = [n for n in candidates[b, 1:].tolist() if n]
            assert len(set(drawn)) == len(drawn) == min(npratio, len(skips))
            assert set(drawn) <= set(skips)
            assert not candidates[b, 1 + len(drawn) :].any()
            too_few += len(drawn) < npratio
            assert batch.labels[b].tolist() == [1] + [0] * npratio
    assert too_few or npratio == 1


def test_a_batch_mentions_each_news_item_once_shortest_first(data):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    index = index_samples(split)
    dataset = TrainSamples(split, index, catalogue, 50, 4, seed=42)
    for key in TrainBatches(len(dataset), 8, seed=42):
        batch = dataset[key]
        rows = read_back(batch, catalogue)
        assert len(set(rows)) == len(rows)
        lengths = batch.token_lengths[FIRST_NEWS:].tolist()
        assert lengths == sorted(lengths)
        assert batch.token_ids.shape[1] == lengths[-1]  # cut to the longest
        mentioned = {*batch.history.unique().tolist(), *batch.candidates.unique().tolist()}
        assert mentioned | {0, 1} == set(range(len(rows)))
        assert 1 not in mentioned


def test_a_batch_holds_each_distinct_history_once(data):
    split = data.split("train")
    index = index_samples(split)
    dataset = TrainSamples(split, index, made_catalogue(data.num_news), 50, 4, seed=42)
    batch = dataset[BatchKey(0, np.arange(len(index.click)))]
    histories = split.history[index.impression]
    assert len(batch.history) == len(set(histories.tolist())) < len(index.click)
    owners = set(zip(batch.user.tolist(), histories.tolist(), strict=True))
    assert len(owners) == len(batch.history)


def test_a_batch_of_users_without_history_has_no_history_columns(data):
    split = data.split("train")
    index = index_samples(split)
    empty = split.histories.lengths[split.history[index.impression]] == 0
    assert empty.any()
    dataset = TrainSamples(split, index, made_catalogue(data.num_news), 50, 4, seed=42)
    batch = dataset[BatchKey(0, np.flatnonzero(empty))]
    histories = np.unique(split.history[index.impression[empty]])
    assert batch.history.shape == (len(histories), 0)
    assert sorted(set(batch.user.tolist())) == list(range(len(histories)))


def test_negatives_change_by_epoch_and_clicks_do_not(data):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    dataset = TrainSamples(split, index_samples(split), catalogue, 50, 2, seed=42)
    everything = np.arange(len(dataset))
    found = []
    for epoch in (0, 0, 1):
        batch = dataset[BatchKey(epoch, everything)]
        found.append(read_back(batch, catalogue)[batch.candidates])
    assert (found[0] == found[1]).all()
    assert (found[0][:, 0] == found[2][:, 0]).all()
    assert (found[0][:, 1:] != found[2][:, 1:]).any()


def test_a_batch_is_cut_to_its_longest_text(data):
    catalogue = made_catalogue(data.num_news)
    wide = catalogue._replace(token_ids=torch.nn.functional.pad(catalogue.token_ids, (0, 9)))
    split, key = data.split("train"), BatchKey(0, np.arange(9))
    narrow, cut = (
        TrainSamples(split, index_samples(split), c, 50, 4, 42)[key] for c in (catalogue, wide)
    )
    assert narrow.token_ids.tolist() == cut.token_ids.tolist()
    assert cut.token_ids.is_contiguous()  # a view would travel to the GPU in pieces


def test_states_come_in_the_order_of_the_news(data):
    catalogue = made_catalogue(data.num_news)
    lengths = catalogue.token_lengths
    real = torch.arange(catalogue.token_ids.shape[1]) < lengths[:, None]
    values = catalogue.token_ids[real][:, None].float().expand(-1, 3)
    states = TokenStates([values], torch.zeros_like(lengths), lengths.cumsum(0) - lengths, lengths)
    split = data.split("train")
    dataset = TrainSamples(split, index_samples(split), catalogue, 50, 4, 42, RunStates(states))
    batch = dataset[BatchKey(0, np.arange(7))]
    mentioned = (
        torch.arange(batch.token_ids.shape[1]) < torch.as_tensor(batch.token_lengths)[:, None]
    )
    assert batch.token_states.shape == (int(batch.token_lengths.sum()), 3)
    assert (batch.token_states == batch.token_ids[mentioned][:, None]).all()


@pytest.mark.parametrize("most", [2, 4, 50])
def test_a_batch_of_whole_impressions_holds_what_a_loop_finds(data, most):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    index, impressions = index_samples(split, whole=True), list(impressions_of(split))
    assert index.impression.tolist() == sorted(set(index_samples(split).impression.tolist()))
    dataset = TrainSamples(
        split, index, catalogue, 50, 4, 42, loss="impression", max_candidates=most
    )
    several = 0
    for epoch in (0, 1):
        for key in [BatchKey(epoch, part) for part in np.split(np.arange(len(dataset)), [9, 11])]:
            batch = dataset[key]
            rows = read_back(batch, catalogue)
            for b, row in enumerate(index.impression[key.samples]):
                clicked, shown, labels = impressions[row]
                known = [(n, y) for n, y in zip(shown, labels, strict=True) if n != UNKNOWN]
                uniform = counter_uniform(42, epoch, row, np.arange(len(known))).tolist()
                order = sorted(range(len(known)), key=uniform.__getitem__)
                clicks = [i for i in order if known[i][1]][: most - 1]
                skips = [i for i in order if not known[i][1]][: most - len(clicks)]
                expected = [known[i] for i in sorted(clicks + skips)]
                real = batch.candidates[b] > 0
                news = [rows[n] for n in batch.candidates[b].tolist() if n]
                assert list(zip(news, batch.labels[b][real].tolist(), strict=True)) == expected
                assert not batch.labels[b][~real].any()
                history = batch.history[batch.user[b]]
                assert [rows[n] for n in history.tolist() if n] == clicked
                several += len(clicks) > 1
                assert index.click[key.samples][b] == next(n for n, y in known if y)
            assert batch.candidates.shape[1] <= most
            assert batch.shared is None
    assert several or most == 2


@pytest.mark.parametrize("most", [2, 3, 50])
def test_a_whole_impression_never_brings_more_tokens_than_it_counts(data, most):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    index, lengths = index_samples(split, whole=True), catalogue.token_lengths.numpy()
    dataset = TrainSamples(split, index, catalogue, 3, 4, 42, None, "impression", most)
    tokens = count_tokens(split, index, lengths, 3, 4, most)
    exact = 0
    for epoch in range(4):
        for sample in range(len(dataset)):
            batch = dataset[BatchKey(epoch, np.array([sample]))]
            mentioned = np.unique(batch.candidates)
            own = batch.token_lengths[mentioned].sum()
            assert own <= tokens.own[sample]
            exact += own == tokens.own[sample]
    assert exact


def test_shared_clicks_are_what_a_loop_over_samples_finds(data):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    index, impressions = index_samples(split), list(impressions_of(split))
    dataset = TrainSamples(split, index, catalogue, 2, 1, 42, loss="in_batch")
    clicks = Counter(index.click.tolist())
    user, of_user = split.user[index.impression].tolist(), {}
    for one, click in zip(user, index.click.tolist(), strict=True):
        of_user.setdefault(one, set()).add(click)
    assert max(map(len, of_user.values())) > 2
    for key in (BatchKey(0, np.arange(9), 9), BatchKey(1, np.arange(9, 20), 14)):
        batch = dataset[key]
        rows = read_back(batch, catalogue)
        news = index.click[key.samples].tolist()
        padding = [0] * (key.largest - len(news))
        assert batch.shared.news.tolist() == news + padding
        expected = [clicks[n] / len(index.click) for n in news] + padding
        assert batch.shared.share.tolist() == pytest.approx(expected)
        assert batch.shared.user.tolist() == [user[sample] for sample in key.samples] + padding
        for b, sample in enumerate(key.samples):
            clicked, _, _ = impressions[index.impression[sample]]  # the whole history, not two
            excluded = batch.shared.excluded[b].tolist()
            assert excluded == sorted(excluded)
            own = rows[batch.candidates[b]].tolist()
            assert set(excluded) - {0} == {*own, *of_user[user[sample]], *clicked} - {0}
    plain = TrainSamples(split, index, catalogue, 2, 1, 42)[key]
    assert plain.shared is None
    for one, other in zip(plain, batch._replace(shared=None), strict=True):
        assert one is other is None or (np.asarray(one) == np.asarray(other)).all()


def test_a_batch_moves_with_its_shared_clicks(data):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    dataset = TrainSamples(split, index_samples(split), catalogue, 2, 1, 42, loss="in_batch")
    moved = dataset[BatchKey(0, np.arange(3))].to("meta")
    assert {t.device.type for t in (moved.candidates, *moved.shared)} == {"meta"}
    assert isinstance(moved.token_lengths, np.ndarray)


# EvalImpressions


@pytest.mark.parametrize("name", ["train", "dev", "test"])
@pytest.mark.parametrize("max_history", [2, 50])
def test_evaluation_batches_agree_with_a_loop(data, name, max_history):
    split = data.split(name)
    impressions, dataset = list(impressions_of(split)), EvalImpressions(split, max_history)
    assert len(dataset) == len(impressions)
    unknown = 0
    for rows in EvalBatches(split, 5):
        batch = dataset[rows]
        assert batch.row.tolist() == rows.tolist()
        assert len(batch.history) == len(set(split.history[rows].tolist()))
        shown = lists(Ragged(batch.candidates.numpy(), batch.offsets.numpy()))
        for i, row in enumerate(rows):
            clicked, candidates, labels = impressions[row]
            kept = clicked[-max_history:]
            found = batch.history[batch.user[i]].tolist()
            assert found == kept + [0] * (len(found) - len(kept))
            assert shown[i] == candidates
            if name != "test":
                start, end = batch.offsets[i], batch.offsets[i + 1]
                assert batch.labels[start:end].tolist() == labels
            unknown += candidates.count(UNKNOWN)
        assert (batch.labels is None) == (name == "test")
    assert unknown == split.counts["unknown_candidates"] > 0


def test_an_empty_evaluation_batch_keeps_its_shapes_and_types(data):
    dataset = EvalImpressions(data.split("dev"), 50)
    full, empty = dataset[np.arange(3)], dataset[np.arange(0)]
    assert empty.history.shape == (0, 0)
    assert empty.offsets.tolist() == [0]
    assert [len(t) for t in (empty.user, empty.candidates, empty.labels, empty.row)] == [0] * 4
    assert [t.dtype for t in empty] == [t.dtype for t in full]
