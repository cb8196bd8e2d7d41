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
from newsrec.evaluation.voices import Voices

NAMES = [f"name {i}" for i in range(400)]
VOICES = {name: (f"group {i % 7}", i % 3 == 0) for i, name in enumerate(NAMES) if i % 4}
"""Group of a name, and whether it is a minority."""
VOICES |= {NAMES[1]: (None, True), NAMES[2]: ("group 1", None), "of nobody": ("group 0", False)}


def voices_of(rows):
    """Return voices as ``read_voices`` does, from a dictionary like ``VOICES``."""
    groups, minority = zip(*rows.values(), strict=True)
    flags = pa.array(minority, pa.bool_())
    return Voices(Path("voices.csv"), pa.array(rows), pa.array(groups, pa.string()), flags)


def annotations(number, seed=0):
    """Return random columns of sentiments and entities; some news have none."""
    rng = np.random.default_rng(seed)
    sentiment = rng.uniform(-1, 1, number).astype(np.float32)
    sentiment[rng.random(number) < 0.1] = [0]
    sentiment[rng.random(number) < 0.1] = [1]
    lengths = np.minimum(rng.geometric(0.3, number) - 1, 12)
    picked = rng.integers(0, len(NAMES), int(lengths.sum())) // rng.integers(1, 9)
    types = rng.choice(["PER", "person", "ORG", None], len(picked), p=[0.4, 0.2, 0.3, 0.1])
    listed = pa.StructArray.from_arrays(
        [pa.array(NAMES).take(pa.array(picked)), pa.array(types, pa.string())], ["name", "type"]
    )
    entities = pa.ListArray.from_arrays(pa.array(to_offsets(lengths), pa.int32()), listed)
    return {
        "sentiment": pa.array(sentiment, mask=rng.random(number) < 0.2),
        "entities": entities,
    }


def random_data(number, num_news, dim, unknown=0.0, hour=3600, largest=283, annotated=False):
    """Return random impressions of MIND's shape, a score of each candidate, and news vectors.

    ``unknown`` is the share of candidates that are not among the news; ``annotated`` news have
    sentiments and entities.
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
    more = annotations(num_news - FIRST_NEWS) if annotated else {}
    news = pa.table({"category": names} | more)
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


def kinds_by_loop(news, voices=None):
    """Return lists of the kinds of each catalogue row, empty for none, by name of metric."""
    found = {"activation": [[], []], "representation": [[], []], "alternative_voices": [[], []]}
    for row in news.to_pylist():
        tone, mentions = row.get("sentiment"), row.get("entities") or []
        known = tone is not None and not math.isnan(tone)
        found["activation"].append([min(int(abs(tone) * 5), 4)] if known else [])
        if voices is None:
            persons = [
                m["name"] for m in mentions if (m["type"] or "").upper() in ("PER", "PERSON")
            ]
            kinds = persons, []
        else:
            listed = [voices[m["name"]] for m in mentions if m["name"] in voices]
            kinds = [[one[i] for one in listed if one[i] is not None] for i in (0, 1)]
        found["representation"].append(kinds[0])
        found["alternative_voices"].append(kinds[1])
    return found


def mixed_shares(news, weights, kinds):
    """Return the share of each kind, where a news item divides its weight among its kinds."""
    sums, total = defaultdict(float), 0.0
    for one, weight in zip(news, weights, strict=True):
        for kind in kinds[one]:
            sums[kind] += weight / len(kinds[one])
        total += weight if kinds[one] else 0
    return {kind: value / total for kind, value in sums.items()}


def from_pool(news, ranks, pool, kinds):
    """Return the distance of a list from its pool; NaN if either has no kind."""
    own = mixed_shares(news, [1 / rank for rank in ranks], kinds)
    shares = mixed_shares(pool, [1] * len(pool), kinds)
    return distance(own, shares) if own and shares else math.nan


def by_loop(data, scores, vectors, others, rows, ks=(5, 10), near=0.9, voices=None):
    """Return every metric of some impressions by a loop: a dictionary for each impression.

    ``vectors`` are the centred vectors of length 1; ``others`` the impressions of other users;
    ``voices`` a dictionary like ``VOICES``.
    """
    kinds = kinds_by_loop(data.news, voices)
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
            } | {
                f"{name}@{k}": from_pool(
                    news, ranks, values[bounds[row] : bounds[row + 1]], kinds[name]
                )
                for name in kinds
            }  # fmt: skip
        result.append(found)
    return result
