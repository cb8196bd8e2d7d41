"""MIND's metrics of random impressions, against its evaluator written as a loop."""

from itertools import pairwise

import numpy as np
import pytest
from test_metrics import all_by_loop, rank_by_loop

from hard import TIMES
from newsrec.metrics import impression_metrics, ranks

CASES = 175 * TIMES
KINDS = [np.float16, np.float32, np.float64, np.int64]


def case(seed):
    """Return scores with ties, zeros of both signs and extremes, labels and offsets."""
    rng = np.random.default_rng([15, seed])
    lengths = rng.integers(0, rng.choice([3, 12, 60, 300]), rng.integers(1, 6))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    number = int(offsets[-1])
    scores = rng.normal(0, 10.0 ** rng.integers(-4, 4), number).astype(KINDS[seed % len(KINDS)])
    tied = rng.random(number) < rng.choice([0, 0.3, 1])
    scores[tied] = rng.choice(rng.integers(-2, 3, 3), tied.sum())
    if scores.dtype.kind == "f":
        odd = rng.random(number) < 0.05
        scores[odd] = rng.choice([0.0, -0.0, np.inf, -np.inf, 1e-7, 60000], odd.sum())
    share = np.repeat(rng.random(len(lengths)), lengths)
    return scores, (rng.random(number) < share).astype(np.int8), offsets


@pytest.mark.slow
def test_metrics_agree_with_the_loop_to_the_last_bit_but_one():
    wrong, evaluated = {}, 0
    for seed in range(CASES):
        scores, labels, offsets = case(seed)
        expected = all_by_loop(scores.tolist(), labels.tolist(), offsets.tolist())
        found = impression_metrics(scores, labels, offsets)
        same = found.valid.tolist() == [values is not None for values in expected]
        values = [values for values in expected if values is not None]
        evaluated += len(values)
        if same and values:
            same = np.abs(found.values[:, found.valid].T - values).max() <= 4.5e-16
        lists = [scores[a:b].tolist() for a, b in pairwise(offsets)]
        same &= ranks(scores, offsets).tolist() == [r for one in lists for r in rank_by_loop(one)]
        if not same:
            wrong[seed] = scores.dtype, offsets.tolist()
    assert not wrong
    assert evaluated > CASES
