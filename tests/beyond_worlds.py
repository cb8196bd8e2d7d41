"""Random impressions for metrics beyond accuracy, and each metric as a plain loop."""

import functools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData, Split
from newsrec.data.ragged import Ragged, to_offsets


def random_data(number, num_news, dim, unknown=0.0, hour=3600, largest=283):
    """Return random impressions of MIND's shape, a score of each candidate, and news vectors.

    ``unknown`` is the share of candidates that are not among the news.
    """
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(24), 0.94, number), 1, largest).astype(np.int64)
    shown = rng.integers(FIRST_NEWS, num_news, int(lengths.sum()), dtype=np.int32)
    shown[rng.random(len(shown)) < unknown] = 1
    candidates = Ragged(shown, to_offsets(lengths))
    labels = np.zeros(len(shown), dtype=np.int8)
    labels[candidates.offsets[:-1] + rng.integers(0, lengths)] = 1
    num_users = max(2, int(number * 0.68))  # as in MIND-large's dev
    clicks = np.clip(rng.lognormal(np.log(19), 1.1, num_users), 0, 800).astype(np.int64)
    clicks[rng.random(num_users) < 0.03] = 0
    read = rng.integers(FIRST_NEWS, num_news, int(clicks.sum()), dtype=np.int32)
    user = rng.integers(0, num_users, number, dtype=np.int32)
    times = np.sort(rng.integers(0, 24 * hour, number)).astype("datetime64[s]")
    split = Split(
        name="train", impression_id=np.arange(1, number + 1), user=user, time=times, history=user,
        histories=Ragged(read, to_offsets(clicks)), candidates=candidates, labels=labels,
        counts={"unknown_candidates": 0}, fingerprint="", num_news=num_news,
    )  # fmt: skip
    names = [f"category {i}" for i in rng.integers(0, 18, num_news - FIRST_NEWS)]
    arrays = {"candidate_offsets": candidates.offsets, "candidate_values": shown, "time": times}
    ids = pa.array([str(i) for i in range(num_users)])
    news = pa.table({"category": names})
    data = NewsData(Path(), Path(), news, ids, {"train": split}, {}, [], arrays)
    vectors = rng.normal(size=(num_news, dim)).astype(np.float32)
    return data, rng.random(len(shown), dtype=np.float32), vectors


def distance(p, q):
    """Return the square root of the Jensen-Shannon divergence of two distributions."""
    total = 0.0
    for key in {*p, *q}:
        middle = (p.get(key, 0) + q.get(key, 0)) / 2
        for one in (p.get(key, 0), q.get(key, 0)):
            total += one * math.log2(one / middle) / 2 if one else 0
    return math.sqrt(max(total, 0))


def ranked_shares(values, ranks):
    """Return the share of each value where a value of rank r weighs 1 / r."""
    shares, total = defaultdict(float), sum(1 / rank for rank in ranks)
    for value, rank in zip(values, ranks, strict=True):
        shares[value] += 1 / rank / total
    return shares


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def by_loop(data, scores, vectors, others, rows, ks=(5, 10), near=0.9):
    """Return every metric of some impressions by a loop: a dictionary for each impression.

    ``vectors`` are the centred vectors of length 1; ``others`` the impressions of other users.
    """
    split = data.split("train")
    names = [None, None, *data.news["category"].to_pylist()]
    bounds, values = split.candidates.offsets.tolist(), split.candidates.values.tolist()
    first, clicks = {}, defaultdict(int)
    for row, time in enumerate(split.time.astype(int).tolist()):
        for place in range(bounds[row], bounds[row + 1]):
            first.setdefault(values[place], time)
            clicks[values[place]] += int(split.labels[place])
    chance = sum(clicks.values()) + len(names) - FIRST_NEWS
    cosines = (vectors @ vectors.T).tolist() if len(vectors) < 3000 else None

    def cosine(a, b):
        return cosines[a][b] if cosines is not None else float(vectors[a] @ vectors[b])

    @functools.cache
    def best(row, k):
        order = sorted(range(bounds[row], bounds[row + 1]), key=lambda i: -scores[i])[:k]
        known = [(i, rank) for rank, i in enumerate(order, 1) if values[i] >= FIRST_NEWS]
        return [values[i] for i, _ in known], [rank for _, rank in known], [i for i, _ in known]

    scores, others = scores.tolist(), others.tolist()
    result = []
    for row in rows:
        user, now = split.history[row], int(split.time[row].astype(int))
        begin, end = split.histories.offsets[user : user + 2]
        history = split.histories.values[begin:end].tolist()
        to_history = {}
        found = {}
        for k in ks:
            news, ranks, places = best(row, k)
            pairs = [(a, b) for i, a in enumerate(news) for b in news[:i]]
            for a in news:
                if a not in to_history:
                    to_history[a] = mean(cosine(a, b) for b in history)
            own, theirs = [names[n] for n in news], [names[n] for n in history]
            lists = [best(other, k) for other in others[row]]
            alike = [any(cosine(a, b) >= near for b in news[:i]) for i, a in enumerate(news)]
            some = bool(news) and bool(history)
            found |= {
                f"calibration@{k}": distance(
                    ranked_shares(own, ranks), {n: theirs.count(n) / len(theirs) for n in theirs}
                ) if some else math.nan,
                f"fragmentation@{k}": mean(
                    distance(ranked_shares(news, ranks), ranked_shares(*other[:2]))
                    if news and other[0] else math.nan
                    for other in lists
                ),
                f"category_diversity@{k}": mean(names[a] != names[b] for a, b in pairs),
                f"vector_diversity@{k}": mean(1 - cosine(a, b) for a, b in pairs),
                f"near_duplicates@{k}": mean(alike),
                f"novelty@{k}": mean(-math.log2((clicks[n] + 1) / chance) for n in news),
                f"unexpectedness@{k}": mean(1 - to_history[n] for n in news),
                f"serendipity@{k}": mean(
                    (1 - to_history[n]) * int(split.labels[i])
                    for n, i in zip(news, places, strict=True)
                ),
                f"freshness@{k}": mean((now - first[n]) / 3600 for n in news),
            }  # fmt: skip
        result.append(found)
    return result
