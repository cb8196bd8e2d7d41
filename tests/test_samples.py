import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.mind import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.samples import (
    BatchKey,
    EvalBatches,
    EvalImpressions,
    TrainBatches,
    TrainSamples,
    counter_uniform,
    draw_skips,
    index_samples,
)
from newsrec.data.states import TokenStates

UNKNOWN = 1


@pytest.fixture
def data(mind_dir):
    return open_mind(mind_dir)


def made_catalogue(num_news):
    """Tokens that name their story: row ``r`` is ``r`` two to six times."""
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
    expected, left_out = [], Counter(unknown_click=0, no_known_skip=0)
    for i, (_, shown, labels) in enumerate(impressions_of(data.split(name))):
        skips = [n for n, label in zip(shown, labels, strict=True) if not label and n != UNKNOWN]
        for news, label in zip(shown, labels, strict=True):
            if label and news == UNKNOWN:
                left_out["unknown_click"] += 1
            elif label and not skips:
                left_out["no_known_skip"] += 1
            elif label:
                expected.append((i, news, skips))

    index = index_samples(data.split(name))
    skips = lists(index.skips)
    found = zip(index.impression.tolist(), index.click.tolist(), strict=True)
    assert [(i, news, skips[i]) for i, news in found] == expected
    assert index.left_out == left_out
    assert sum(left_out.values()) > 0
    assert len(expected) + sum(left_out.values()) == data.split(name).counts["clicks"]


def test_an_unknown_click_is_counted_once_even_if_nothing_was_skipped(data):
    split = data.split("dev")._replace(
        candidates=Ragged(np.array([UNKNOWN, 5, 6, UNKNOWN, 7, 8]), np.array([0, 1, 2, 4, 6])),
        labels=np.array([1, 1, 1, 0, 1, 0], dtype=np.int8),
    )
    index = index_samples(split)
    assert index.left_out == {"unknown_click": 1, "no_known_skip": 2}
    assert (index.impression.tolist(), index.click.tolist()) == ([3], [7])


# draw_skips and counter_uniform


counts = st.lists(st.integers(0, 30), max_size=12)
seeds = st.integers(0, 2**32 - 1)


@given(counts, st.integers(1, 9), seeds, st.integers(0, 1000), st.integers(0, 10**9))
@settings(max_examples=300, deadline=None)
def test_skips_are_distinct_and_missing_only_where_there_are_too_few(
    num_skips, npratio, seed, epoch, start
):
    sample = np.arange(start, start + len(num_skips))
    drawn = draw_skips(np.array(num_skips, dtype=np.int64), npratio, seed, epoch, sample)
    assert drawn.shape == (len(num_skips), npratio)
    assert drawn.dtype == np.int64
    for row, number in zip(drawn.tolist(), num_skips, strict=True):
        real = row[: min(number, npratio)]
        assert row[len(real) :] == [-1] * (npratio - len(real))
        assert real == sorted(set(real))
        assert all(0 <= place < number for place in real)


@given(counts, st.integers(1, 5), seeds, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_skips_do_not_depend_on_who_shares_the_batch(num_skips, npratio, seed, random):
    num_skips = np.array(num_skips, dtype=np.int64)
    sample = np.arange(len(num_skips)) * 3
    together = draw_skips(num_skips, npratio, seed, 1, sample)
    order = random.sample(range(len(num_skips)), len(num_skips))
    shuffled = draw_skips(num_skips[order], npratio, seed, 1, sample[order])
    assert shuffled.tolist() == together[order].tolist()
    for i in range(len(num_skips)):
        alone = draw_skips(num_skips[[i]], npratio, seed, 1, sample[[i]])
        assert alone.tolist() == together[[i]].tolist()


def test_skips_change_with_seed_and_epoch_and_sample():
    many, sample = np.full(1000, 50), np.arange(1000)
    base = draw_skips(many, 4, 42, 0, sample)
    assert (base == draw_skips(many, 4, 42, 0, sample)).all()
    for other in (
        draw_skips(many, 4, 43, 0, sample),
        draw_skips(many, 4, 42, 1, sample),
        draw_skips(many, 4, 42, 0, sample + 1),
        draw_skips(many, 4, 0, 42, sample),  # (seed, epoch) is not their sum
    ):
        assert (base == other).all(axis=1).mean() < 0.01
    assert len(np.unique(base, axis=0)) > 990


@pytest.mark.parametrize("sample", [np.arange(60_000), 60_000 - np.arange(60_000) * 64])
def test_every_set_of_skips_is_equally_likely(sample):
    drawn = draw_skips(np.full(60_000, 6), 3, 42, 3, np.abs(sample))
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


# TrainBatches


def epoch_of(num_samples, batch_size, seed=42, epoch=0, world_size=1):
    """Return the batches of every rank in one epoch."""
    ranks = []
    for rank in range(world_size):
        batches = TrainBatches(num_samples, batch_size, seed, rank, world_size)
        batches.set_epoch(epoch)
        keys = list(batches)
        assert len(keys) == len(batches)
        assert {key.epoch for key in keys} <= {epoch}
        ranks.append([key.samples.tolist() for key in keys])
    return ranks


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [0, 1, 2, 7, 24, 25, 26, 101])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_an_epoch_visits_each_sample_once(num_samples, batch_size, world_size):
    ranks = epoch_of(num_samples, batch_size, world_size=world_size)
    visited = [sample for batches in ranks for batch in batches for sample in batch]
    assert len(set(visited)) == len(visited)
    assert set(visited) <= set(range(num_samples))
    assert num_samples - len(visited) < world_size
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    assert sizes == [sizes[0]] * world_size  # no process waits for another at the end
    assert all(size == batch_size for size in sizes[0][:-1])


@pytest.mark.parametrize("num_samples", [40, 42, 45])
def test_two_processes_see_together_what_one_sees_in_batches_twice_the_size(num_samples):
    (whole,) = epoch_of(num_samples, 8)
    halves = epoch_of(num_samples, 4, world_size=2)
    together = [set(a) | set(b) for a, b in zip(*halves, strict=True)]
    usable = {sample for batch in together for sample in batch}
    assert together == [kept for batch in whole if (kept := set(batch) & usable)]
    assert num_samples - len(usable) == num_samples % 2


def test_the_order_changes_with_epoch_and_seed_alone():
    base = epoch_of(1000, 8)
    assert base == epoch_of(1000, 8)
    flat = list(itertools.chain(*base[0]))
    assert flat != sorted(flat)
    for other in (epoch_of(1000, 8, epoch=1), epoch_of(1000, 8, seed=43)):
        changed = itertools.chain(*other[0])
        assert sum(a == b for a, b in zip(flat, changed, strict=True)) < 20


# TrainSamples


def read_back(batch, catalogue):
    """Return a batch's stories by catalogue row, in its order, from the tokens alone."""
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
    samples = TrainSamples(split, index, catalogue, max_history, npratio, seed=42)
    impressions = list(impressions_of(split))
    too_few = 0
    for key in TrainBatches(len(samples), 8, seed=42):
        batch = samples[key]
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


def test_a_batch_mentions_each_story_once_shortest_first(data):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    index = index_samples(split)
    samples = TrainSamples(split, index, catalogue, 50, 4, seed=42)
    for key in TrainBatches(len(samples), 8, seed=42):
        batch = samples[key]
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
    samples = TrainSamples(split, index, made_catalogue(data.num_news), 50, 4, seed=42)
    batch = samples[BatchKey(0, np.arange(len(index.click)))]
    histories = split.history[index.impression]
    assert len(batch.history) == len(set(histories.tolist())) < len(index.click)
    owners = set(zip(batch.user.tolist(), histories.tolist(), strict=True))
    assert len(owners) == len(batch.history)


def test_a_batch_of_readers_without_history_has_no_history_columns(data):
    split = data.split("train")
    index = index_samples(split)
    empty = split.histories.lengths[split.history[index.impression]] == 0
    assert empty.any()
    samples = TrainSamples(split, index, made_catalogue(data.num_news), 50, 4, seed=42)
    batch = samples[BatchKey(0, np.flatnonzero(empty))]
    # Two rows: one history is empty in the file, the other names nothing that news.tsv has.
    assert batch.history.shape == (2, 0)
    assert sorted(set(batch.user.tolist())) == [0, 1]


def test_negatives_change_by_epoch_and_clicks_do_not(data):
    split, catalogue = data.split("train"), made_catalogue(data.num_news)
    samples = TrainSamples(split, index_samples(split), catalogue, 50, 2, seed=42)
    everything = np.arange(len(samples))
    found = []
    for epoch in (0, 0, 1):
        batch = samples[BatchKey(epoch, everything)]
        found.append(read_back(batch, catalogue)[batch.candidates])
    assert (found[0] == found[1]).all()
    assert (found[0][:, 0] == found[2][:, 0]).all()
    assert (found[0][:, 1:] != found[2][:, 1:]).any()


def test_states_come_in_the_order_of_the_stories(data):
    catalogue = made_catalogue(data.num_news)
    states = TokenStates(catalogue.token_lengths, catalogue.first, hidden=3)
    news = torch.arange(FIRST_NEWS, data.num_news)
    states.put(news, catalogue.token_ids[news, :, None].float().expand(-1, -1, 3))
    split = data.split("train")
    samples = TrainSamples(split, index_samples(split), catalogue, 50, 4, 42, states)
    batch = samples[BatchKey(0, np.arange(7))]
    assert batch.token_states.shape == (*batch.token_ids.shape, 3)
    assert (batch.token_states == batch.token_ids[..., None]).all()


# EvalBatches


class Impressions(NamedTuple):
    """The two arrays of a split that the order of evaluation depends on."""

    history: np.ndarray
    histories: Ragged


@given(
    st.lists(st.integers(0, 5), max_size=40), st.integers(1, 7), st.sampled_from([1, 2, 3, 5, 64])
)
@settings(max_examples=200, deadline=None)
def test_each_impression_is_evaluated_once_on_any_number_of_processes(
    lengths, batch_size, world_size
):
    sizes = np.array(lengths, dtype=np.int64)
    histories = Ragged(np.full(sizes.sum(), FIRST_NEWS), to_offsets(sizes))
    split = Impressions(np.arange(len(lengths)), histories)
    ranks = [EvalBatches(split, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert {len(b) for b in batches} == {len(rank) for rank in ranks}
    assert len({len(b) for b in batches}) == 1
    rows = [row for b in batches for batch in b for row in batch.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for b in batches for batch in b)


def test_impressions_with_the_same_history_are_neighbours(data):
    split = data.split("dev")
    order = np.concatenate(list(EvalBatches(split, 4)))
    lengths = split.histories.lengths[split.history[order]]
    assert (np.diff(lengths) >= 0).all()
    changes = (np.diff(split.history[order]) != 0).sum()
    assert changes == len(np.unique(split.history)) - 1


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
