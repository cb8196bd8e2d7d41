"""How well explanations say what a click does to a score, for several methods.

    python tests/benchmarks/explain.py exports/demo --data.root data/demo

Prints one JSON object. Users of dev with at least 5 clicks are explained for their two best news
items of the catalogue and two random ones. For each method:

- top_click: correlation of the change of the score when the click with the largest value is
  deleted with the change that the values predict, and the mean error as a share of the mean change.
  Without a click the others have more weight in a mean, so values predict ``(value - mean of the
  values) clicks / (clicks - 1)``; leave-one-out predicts its value.
- deleted: mean fall of the score while half of the clicks are deleted, the largest values first.
- unaccounted: what the values leave out of the score beyond that of a user without seen clicks, as
  a share of their difference (median).
- runs: histories that are encoded for one explanation of 50 clicks.
"""

import argparse
import itertools
import json

import numpy as np

from newsrec.attribution import runs
from newsrec.data.dataset import open_mind
from newsrec.serving import Recommender
from newsrec.serving.explain import explain
from newsrec.serving.matching import match_all

STEPS, STEP = 8, 0.02
"""Points of the way from zeros to the news vectors, and the distance of finite differences."""
FEWEST = 5


class Model:
    """Scores some news for many histories of vectors at once."""

    def __init__(self, export):
        recommender = Recommender.load(export, threads=1)
        self.encoders, self.news = recommender._encoders, recommender.news_vectors

    def scores(self, histories, candidates):
        """Scores of news for histories of vectors ``[histories, candidates]``."""
        starts = np.cumsum([1, *map(len, histories)])
        vectors = np.concatenate([np.zeros((1, self.news.shape[1]), np.float32), *histories])
        rows = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
        users = self.encoders.users(rows, vectors.astype(np.float32))
        return match_all(users, self.news[candidates])


def leave_one_out(model, clicks, candidates):
    whole = model.scores([clicks], candidates)
    return whole - model.scores([np.delete(clicks, i, 0) for i in range(len(clicks))], candidates)


def integrated_gradients(model, clicks, candidates):
    moved = []
    for point in (np.arange(STEPS) + 0.5) / STEPS:
        for click in range(len(clicks)):
            for sign in (1, -1):
                history = clicks * point
                history[click] = clicks[click] * (point + sign * STEP)
                moved.append(history)
    scores = model.scores(moved, candidates).reshape(STEPS, len(clicks), 2, -1)
    return (scores[:, :, 0] - scores[:, :, 1]).mean(axis=0) / (2 * STEP)


def products(model, clicks, candidates):
    return clicks @ model.news[candidates].T


def at_random(model, clicks, candidates):
    return np.random.default_rng(len(clicks)).normal(size=(len(clicks), len(candidates)))


def shapley(model, clicks, candidates):
    vectors = np.concatenate([clicks, model.news[candidates]])
    rows = np.arange(len(vectors))
    found = explain(model.encoders, rows[: len(clicks)], vectors, rows[len(clicks) :])
    return found.values.T


METHODS = {
    "shapley": (shapley, lambda n: len(runs(n).kept)),
    "leave-one-out": (leave_one_out, lambda n: n + 1),
    "integrated gradients": (integrated_gradients, lambda n: 2 * STEPS * n),
    "product with the news vector": (products, lambda n: 0),
    "random": (at_random, lambda n: 0),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export")
    parser.add_argument("--data.root", dest="root", required=True)
    parser.add_argument("--users", type=int, default=40)
    args = parser.parse_args()
    model, dev = Model(args.export), open_mind(args.root).split("dev")
    offsets = np.asarray(dev.histories.offsets)
    rng = np.random.default_rng(0)
    long = np.flatnonzero(np.diff(offsets) >= FEWEST)
    seen = {name: {"pairs": [], "deleted": [], "left": []} for name in METHODS}
    for history in rng.choice(long, min(args.users, len(long)), replace=False):
        rows = np.asarray(dev.histories.values[offsets[history] : offsets[history + 1]])
        clicks = model.news[rows[-model.encoders.max_history :]]
        number, half = len(clicks), len(clicks) // 2
        everything = model.scores([clicks], np.arange(2, len(model.news)))[0]
        best = 2 + np.argsort(-everything)[:2]
        candidates = np.concatenate([best, rng.integers(2, len(model.news), 2)])
        whole = model.scores([clicks], candidates)[0]
        hidden = model.scores([np.zeros_like(clicks)], candidates)[0]
        for name, (method, _) in METHODS.items():
            values, found = method(model, clicks, candidates), seen[name]
            left = np.abs(whole - hidden - values.sum(axis=0)) / np.abs(whole - hidden)
            found["left"] += left.tolist()
            for place, candidate in enumerate(candidates):
                own = values[:, place]
                order = np.argsort(-own, kind="stable")
                fewer = [np.delete(clicks, order[:gone], 0) for gone in range(1, half + 1)]
                fall = whole[place] - model.scores(fewer, candidate[None])[:, 0]
                predicted = own[order[0]]
                if name != "leave-one-out":
                    predicted = (predicted - own.mean()) * number / (number - 1)
                found["pairs"].append((predicted, fall[0]))
                found["deleted"].append(fall.mean())
    result = {}
    for name, (_, cost) in METHODS.items():
        predicted, true = np.array(seen[name]["pairs"]).T
        error = np.abs(predicted - true).mean() / np.abs(true).mean()
        scaled = name not in ("random", "product with the news vector")  # others are no scores
        result[name] = {
            "top_click_correlation": round(float(np.corrcoef(predicted, true)[0, 1]), 3),
            "top_click_error": round(float(error), 3) if scaled else None,
            "deleted": round(float(np.mean(seen[name]["deleted"])), 3),
            "unaccounted": round(float(np.median(seen[name]["left"])), 3) if scaled else None,
            "runs": cost(50),
        }
    print(json.dumps({"users": min(args.users, len(long)), "methods": result}, indent=1))


if __name__ == "__main__":
    main()
