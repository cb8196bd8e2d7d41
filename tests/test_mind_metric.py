"""MIND's metrics over batches and processes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from forks import started
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.metrics import METRICS, ImpressionMetrics, mind_metrics
from newsrec.training import mind_metric
from newsrec.training.mind_metric import MindMetric

CLOSE = {"rtol": 0, "atol": 1e-12}


def random_impressions(rng, number, longest=30):
    """Return labels and offsets; some lists are empty, of one candidate or of one class."""
    lengths = rng.integers(0, longest, number)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = (rng.random(offsets[-1]) < np.repeat(rng.random(number), lengths)).astype(np.int8)
    return labels, offsets


numbers = st.floats(width=32, allow_nan=False)
impressions = st.lists(
    st.lists(st.tuples(numbers, st.integers(0, 1)), max_size=9), min_size=1, max_size=5
)


def flatten(lists):
    flat = [pair for one in lists for pair in one]
    offsets = np.cumsum([0, *map(len, lists)])
    scores = np.array([score for score, _ in flat], dtype=np.float32)
    return scores, np.array([label for _, label in flat], dtype=int), offsets


@given(impressions, st.data())
@settings(max_examples=200, deadline=None)
def test_any_division_into_batches_gives_the_same_means(lists, data):
    metric = MindMetric()
    cuts = data.draw(st.lists(st.integers(0, len(lists)), max_size=4))
    cuts = [0, *sorted(cuts), len(lists)]
    for first, last in pairwise(cuts):
        metric.update(*map(torch.from_numpy, flatten(lists[first:last])))
    whole = mind_metrics(*flatten(lists))
    found = {name: value.item() for name, value in metric.compute().items()}
    assert list(found) == list(METRICS)
    np.testing.assert_allclose(list(found.values()), [whole[n] for n in METRICS], **CLOSE)


def test_a_metric_forgets_when_reset_and_keeps_double_precision():
    metric = MindMetric()
    metric.update(torch.tensor([2.0, 1.0]), torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert metric.compute()["auc"] == 0
    metric.reset()
    metric.half()
    metric.update(torch.tensor([2.0, 1.0]), torch.tensor([1, 0]), torch.tensor([0, 2]))
    assert metric.compute()["auc"] == 1
    assert metric.compute()["auc"].dtype == torch.float64


def test_a_metric_keeps_its_sums_without_float64():
    metric = MindMetric()  # which a device without it (MPS) could not take
    kinds = {name: getattr(metric, name).dtype for name in metric.metric_state}
    assert set(kinds.values()) == {torch.int64}
    rng = np.random.default_rng(4)
    labels, offsets = random_impressions(rng, 300)
    scores = rng.normal(size=len(labels))
    for start, end in pairwise(offsets):
        metric.update(*map(torch.tensor, (scores[start:end], labels[start:end], [0, end - start])))
    expected = [mind_metrics(scores, labels, offsets)[name] for name in METRICS]
    np.testing.assert_allclose(list(metric.compute().values()), expected, **CLOSE)


def test_the_sums_of_many_impressions_do_not_overflow(monkeypatch):
    some = ImpressionMetrics(np.full((4, 10**6), 0.75), np.ones(10**6, bool), np.zeros(10**6, bool))
    monkeypatch.setattr(mind_metric, "impression_metrics", lambda *batch: some)
    metric = MindMetric()
    for _ in range(15):  # one integer in UNIT would hold a sum of 8 million
        metric.update(*[torch.zeros(0)] * 3)
    np.testing.assert_allclose(list(metric.compute().values()), [0.75] * 4, **CLOSE)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_metric_that_saw_nothing_is_nan():
    assert all(value.isnan() for value in MindMetric().compute().values())


def means_of_process(rank, store, shares):
    """Join another process and return the means that this one computes with it, share by share."""
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = []
    for share in shares:
        metric = MindMetric()
        for batch in share[rank]:
            metric.update(*map(torch.tensor, batch))
        found.append([value.item() for value in metric.compute().values()])
    torch.distributed.destroy_process_group()
    return found


def say_means(says, *task):
    says.send(means_of_process(1, *task))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_agree_with_one_also_if_one_saw_nothing(tmp_path):
    rng = np.random.default_rng(3)
    batches = []
    one = MindMetric()
    for number in (40, 7, 25):
        labels, offsets = random_impressions(rng, number)
        batches.append([rng.normal(size=len(labels)).tolist(), labels.tolist(), offsets.tolist()])
        one.update(*map(torch.tensor, batches[-1]))
    expected = [value.item() for value in one.compute().values()]

    store = f"file://{tmp_path}/store"
    shares = [[batches[:1], batches[1:]], [batches, []], [[], batches]]
    other, hears = started(say_means, store, shares)
    here = means_of_process(0, store, shares)
    assert hears.poll(60)
    there = hears.recv()
    other.join()
    np.testing.assert_allclose(here, [expected] * 3, **CLOSE)
    np.testing.assert_allclose(there, [expected] * 3, **CLOSE)
