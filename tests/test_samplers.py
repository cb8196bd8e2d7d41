import itertools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Catalogue
from newsrec.data.dataset import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.samplers import (
    BatchKey,
    EvalBatches,
    SampleGroups,
    SampleTokens,
    TokenBatches,
    TrainBatches,
)
from newsrec.data.samples import TrainSamples, count_tokens, index_samples

# TrainBatches


def epoch_of(num_samples, batch_size, seed=42, epoch=0, world_size=1, groups=None):
    """Return the batches of every rank in one epoch."""
    ranks = []
    for rank in range(world_size):
        batches = TrainBatches(num_samples, batch_size, seed, rank, world_size, groups)
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
    order = flat(base[0])
    assert order != sorted(order)
    for other in (epoch_of(1000, 8, epoch=1), epoch_of(1000, 8, seed=43)):
        changed = flat(other[0])
        assert sum(a == b for a, b in zip(order, changed, strict=True)) < 20


def flat(batches):
    """Return the samples of some batches, in order."""
    return [sample for batch in batches for sample in batch]


@pytest.mark.parametrize("grouped", [False, True])
def test_processes_take_neighbouring_pieces_of_a_step(grouped):
    groups = made_groups(101, 7) if grouped else None
    (alone,) = epoch_of(101, 12, groups=groups)
    ranks = epoch_of(101, 4, world_size=3, groups=groups)
    together = [flat(pieces) for pieces in zip(*ranks, strict=True)]
    assert together[:-1] == alone[:-1]
    assert flat(together) == flat(alone)[:99]


def test_the_order_of_a_run_is_that_of_earlier_versions():
    # Runs are repeated by seed: another order here is another published number.
    (batches,) = epoch_of(10, 4, seed=42, epoch=1)
    assert batches == [[0, 8, 7, 4], [3, 1, 2, 9], [6, 5]]


# users' blocks


def made_groups(num_samples, num_users, seed=0, histories_per_user=1):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, num_users, num_samples, dtype=np.int32)
    history = 100 + user * histories_per_user + rng.integers(0, histories_per_user, num_samples)
    return SampleGroups(user, history.astype(np.int32))


def runs(values):
    return [value for value, _ in itertools.groupby(values)]


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_samples_of_a_user_follow_each_other(num_samples, num_users, histories_per_user, epoch):
    groups = made_groups(num_samples, num_users, epoch, histories_per_user)
    batches = TrainBatches(num_samples, 4, 42, groups=groups)
    order = batches.order(epoch)
    assert sorted(order.tolist()) == list(range(num_samples))
    users = runs(groups.group[order].tolist())
    assert len(users) == len(set(users))
    histories = runs(groups.history[order].tolist())
    assert len(histories) == len(set(histories))


@given(st.integers(0, 60), st.integers(1, 12), st.booleans(), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_the_order_is_that_of_64_bit_numbers_sorted_by_a_key(
    num_samples, num_users, grouped, epoch
):
    """A smaller type and fewer copies change no batch of an older run."""
    groups = made_groups(num_samples, num_users, epoch) if grouped else None
    rng = np.random.default_rng([42, epoch])
    expected = rng.permutation(num_samples)
    if groups is not None:
        place = rng.permutation(int(groups.group.max(initial=-1)) + 1)
        key = (place[groups.group] << 32) | groups.history
        expected = expected[np.argsort(key[expected], kind="stable")]
    order = TrainBatches(num_samples, 4, 42, groups=groups).order(epoch)
    assert order.dtype == np.int32
    assert order.tolist() == expected.tolist()


def test_users_and_the_samples_within_a_user_are_shuffled_anew_in_each_epoch():
    groups = made_groups(2000, 100)
    first, second, other = (
        TrainBatches(2000, 8, seed, groups=groups).order(epoch)
        for seed, epoch in ((42, 0), (42, 1), (43, 0))
    )
    for order in (first, second, other):
        users = runs(groups.group[order].tolist())
        assert len(users) == 100
        assert sum(user == place for place, user in enumerate(users)) < 10
    of_one = [order[groups.group[order] == 7].tolist() for order in (first, second, other)]
    assert sorted(of_one[0]) == sorted(of_one[1]) == sorted(of_one[2])
    assert of_one[0] != of_one[1] != of_one[2] != of_one[0]
    assert of_one[0] != sorted(of_one[0])
    assert runs(groups.group[first].tolist()) != runs(groups.group[second].tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 25, 101])
def test_an_epoch_by_user_visits_each_sample_once(num_samples, world_size):
    ranks = epoch_of(num_samples, 4, world_size=world_size, groups=made_groups(num_samples, 9))
    visited = flat(flat(ranks))
    assert len(set(visited)) == len(visited) > num_samples - world_size
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    assert sizes == [sizes[0]] * world_size


def test_a_group_larger_than_a_batch_goes_over_into_the_next_batch():
    groups = SampleGroups(np.repeat([0, 1, 2], [1, 9, 2]), np.repeat([7, 8, 7], [1, 9, 2]))
    for world_size in (1, 2):
        ranks = epoch_of(12, 3, world_size=world_size, groups=groups)
        together = flat(flat(pieces) for pieces in zip(*ranks, strict=True))
        assert sorted(together) == list(range(12))
        assert [group for group in runs(groups.group[together].tolist()) if group == 1] == [1]


# TokenBatches


@st.composite
def token_worlds(draw):
    """Return a SampleTokens, SampleGroups or None, and a bound that is just or amply enough."""
    num_users = draw(st.integers(1, 8))
    of_history = np.array(
        draw(st.lists(st.integers(0, 50), min_size=num_users, max_size=num_users))
    )
    user = np.array(draw(st.lists(st.integers(0, num_users - 1), min_size=1, max_size=60)))
    own = np.array(draw(st.lists(st.integers(1, 20), min_size=len(user), max_size=len(user))))
    tokens = SampleTokens(own.astype(np.int32), of_history[user].astype(np.int32))
    groups = (
        SampleGroups(user.astype(np.int32), user.astype(np.int32)) if draw(st.booleans()) else None
    )
    bound = 2 * tokens.largest + draw(st.sampled_from([0, 1, 7, 100, 1000]))
    return tokens, groups, bound


@given(token_worlds(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_batches_stay_within_their_tokens_on_any_number_of_processes(world, world_size):
    tokens, groups, bound = world
    num_samples = len(tokens.own)
    ranks = [TokenBatches(tokens, bound, 42, r, world_size, groups) for r in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    for epoch in (0, 1, 5):
        visited = []
        for rank in ranks:
            rank.set_epoch(epoch)
            batches = [key.samples for key in rank]
            assert len(batches) == len(rank)
            for samples in batches:
                assert len(samples)
                # In the order of users every history counts once, otherwise with every sample.
                shared = tokens.history[samples]
                if groups is not None:
                    shared = shared[np.unique(groups.history[samples], return_index=True)[1]]
                assert tokens.own[samples].sum() + shared.sum() <= bound
            visited += flat(batches)
        assert len(set(visited)) == len(visited)
        left_over = num_samples - len(visited)
        assert left_over < world_size
        assert left_over == 0 or len(visited) == world_size * len(ranks[0])


def test_the_bound_is_used_well():
    rng = np.random.default_rng(0)
    tokens = SampleTokens(
        rng.integers(40, 90, 5000, dtype=np.int32), rng.integers(0, 800, 5000, dtype=np.int32)
    )
    batches = TokenBatches(tokens, 20_000, seed=42)
    costs = [int((tokens.own + tokens.history)[key.samples].sum()) for key in batches]
    assert max(costs) <= 20_000
    assert min(costs) > 17_000  # below the bound by two samples at most
    sizes = [len(key.samples) for key in batches]
    assert len(sizes) == len(batches) == -(-sum(costs) // (20_000 - tokens.largest))


def test_fewer_batches_do_where_users_stay_together():
    groups = made_groups(3000, 300)
    tokens = SampleTokens(np.full(3000, 60, np.int32), np.full(3000, 500, np.int32))
    alone, together = (len(TokenBatches(tokens, 9000, 42, groups=r)) for r in (None, groups))
    assert together < 0.4 * alone


def test_a_cut_within_a_user_counts_the_history_again():
    tokens = SampleTokens(np.full(100, 10, np.int32), np.full(100, 20, np.int32))
    groups = SampleGroups(np.zeros(100, np.int32), np.zeros(100, np.int32))
    sizes = [len(key.samples) for key in TokenBatches(tokens, 200, 42, groups=groups)]
    assert sizes == [15, 17, 17, 17, 17, 17]
    assert 20 + 10 * max(sizes) <= 200


def test_news_without_tokens_still_fill_batches():
    nothing = SampleTokens(np.zeros(7, np.int32), np.zeros(7, np.int32))
    assert [len(key.samples) for key in TokenBatches(nothing, 1, 42)] == [7]


# real batches, and going on in the middle of an epoch


@st.composite
def splits(draw):
    """Return a small split, the lengths of its news items, and the limits of a sample."""
    num_news = draw(st.integers(6, 30))
    news = st.integers(FIRST_NEWS, num_news - 1)
    histories = draw(st.lists(st.lists(news, max_size=6), min_size=1, max_size=6))
    impressions = draw(st.integers(1, 14))
    user = draw(
        st.lists(st.integers(0, len(histories) - 1), min_size=impressions, max_size=impressions)
    )
    shown = draw(
        st.lists(
            st.lists(news, min_size=2, max_size=6, unique=True),
            min_size=impressions,
            max_size=impressions,
        )
    )
    labels = [[1] * draw(st.integers(1, len(row) - 1)) for row in shown]
    labels = [ones + [0] * (len(row) - len(ones)) for ones, row in zip(labels, shown, strict=True)]
    split = SimpleNamespace(
        user=np.array(user, np.int32),
        history=np.array(user, np.int32),
        histories=ragged(histories),
        candidates=ragged(shown),
        labels=ragged(labels).values.astype(np.int8),
    )
    lengths = [
        0,
        0,
        *draw(st.lists(st.integers(1, 8), min_size=num_news - 2, max_size=num_news - 2)),
    ]
    return split, np.array(lengths), draw(st.integers(1, 5)), draw(st.integers(1, 3))


def ragged(rows):
    flat_rows = np.array([value for row in rows for value in row], dtype=np.int32)
    return Ragged(flat_rows, to_offsets(np.array([len(row) for row in rows], dtype=int)))


def made_dataset(split, lengths, max_history, npratio, mode=""):
    """Tokens that name their news item: row ``r`` is ``r``, as often as it is long."""
    numbers = torch.arange(len(lengths), dtype=torch.int32)
    catalogue = Catalogue(
        numbers[:, None] * (torch.arange(8) < torch.from_numpy(lengths)[:, None]).int(),
        torch.from_numpy(lengths),
        numbers.long(),
    )
    whole = "whole" in mode
    loss = "impression" if whole else "cross_entropy"
    index = index_samples(split, whole)
    return TrainSamples(split, index, catalogue, max_history, npratio, 42, None, loss, npratio + 1)


def made_batches(dataset, mode, rank=0, world_size=1, slack=0):
    """Return the batches of one process; ``mode`` is what the data module's options choose."""
    groups, index, split = None, dataset.index, dataset.split
    if "user" in mode or "impression" in mode:
        group = split.user[index.impression] if "user" in mode else index.impression
        groups = SampleGroups(group, split.history[index.impression])
    if "tokens" not in mode:
        return TrainBatches(len(dataset), 3, 42, rank, world_size, groups)
    lengths = dataset.token_lengths
    most = dataset.max_candidates if "whole" in mode else None
    tokens = count_tokens(split, index, lengths, dataset.max_history, dataset.npratio, most)
    return TokenBatches(tokens, 2 * tokens.largest + slack, 42, rank, world_size, groups)


MODES = ["random", "by user", "tokens", "tokens by user"]
MODES = [*(f"{mode}, whole" for mode in MODES), *MODES, "by impression", "tokens by impression"]
BY_TOKENS = [mode for mode in MODES if "tokens" in mode]


@given(
    splits(),
    st.sampled_from(BY_TOKENS),
    st.integers(1, 3),
    st.sampled_from([0, 3, 50]),
)
@settings(max_examples=200, deadline=None)
def test_the_plm_never_reads_more_tokens_than_allowed(world, mode, world_size, slack):
    dataset = made_dataset(*world, mode)
    for rank in range(world_size):
        batches = made_batches(dataset, mode, rank, world_size, slack)
        bound = 2 * batches.tokens.largest + slack
        for epoch in (0, 3):
            batches.set_epoch(epoch)
            assert all(dataset[key].token_lengths.sum() <= bound for key in batches)


def drawn(dataset, keys):
    """Return the candidates of each sample in some batches, by catalogue row."""
    found = []
    for key in keys:
        batch = dataset[key]
        news = batch.token_ids[:, 0] if batch.token_ids.shape[1] else torch.zeros(2)
        # Padding of whole impressions depends on who shares the batch.
        shown = [[n for n in row if n] for row in news[batch.candidates].tolist()]
        found += zip(key.samples.tolist(), shown, strict=True)
    return found


@given(splits(), st.sampled_from(MODES), st.integers(0, 2))
@settings(max_examples=200, deadline=None)
def test_a_sample_is_the_same_however_samples_are_shared_out(world, mode, epoch):
    dataset = made_dataset(*world, mode)
    expected = dict(drawn(dataset, [BatchKey(epoch, np.arange(len(dataset)))]))
    for world_size in (1, 3):
        for rank in range(world_size):
            batches = made_batches(dataset, mode, rank, world_size)
            batches.set_epoch(epoch)
            for sample, candidates in drawn(dataset, batches):
                assert candidates == expected[sample]


@given(splits(), st.sampled_from(MODES), st.integers(1, 3), st.data())
@settings(max_examples=200, deadline=None)
def test_a_resumed_epoch_sees_exactly_the_samples_that_are_left(world, mode, world_size, data):
    dataset = made_dataset(*world, mode)
    done = data.draw(st.integers(0, len(made_batches(dataset, mode, 0, world_size))))
    before, after, whole = [], [], []
    for rank in range(world_size):
        unbroken = made_batches(dataset, mode, rank, world_size)
        resumed = made_batches(dataset, mode, rank, world_size)
        resumed.start = done
        for batches in (unbroken, resumed):
            batches.set_epoch(1)
        keys = list(unbroken)
        assert drawn(dataset, resumed) == drawn(dataset, keys[done:])
        before += flat(key.samples.tolist() for key in keys[:done])
        after += flat(key.samples.tolist() for key in resumed)
        whole += flat(key.samples.tolist() for key in keys)
    assert not set(before) & set(after)
    assert sorted(before + after) == sorted(whole)


@given(splits(), st.sampled_from(MODES), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_each_process_knows_the_largest_batch_of_the_step(world, mode, world_size):
    dataset = made_dataset(*world, mode)
    ranks = [list(made_batches(dataset, mode, rank, world_size)) for rank in range(world_size)]
    for keys in zip(*ranks, strict=True):
        largest = max(len(key.samples) for key in keys)
        assert [key.largest for key in keys] == [largest] * world_size


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


def test_impressions_with_the_same_history_are_neighbours(mind_dir):
    split = open_mind(mind_dir).split("dev")
    order = np.concatenate(list(EvalBatches(split, 4)))
    lengths = split.histories.lengths[split.history[order]]
    assert (np.diff(lengths) >= 0).all()
    changes = (np.diff(split.history[order]) != 0).sum()
    assert changes == len(np.unique(split.history)) - 1
