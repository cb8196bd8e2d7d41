"""What score should a candidate have whose news item nobody knows? Rules, measured.

A share of the news shown is taken out of the catalogue at random, as if news.tsv lacked it: out of
histories, out of the mean of all news, and out of what the model can score. Each rule then gives
those candidates a score, and MIND's AUC is taken over all. "Where it matters" are the impressions
with an unknown candidate; the interval of the gain over the mean news vector covers the choice of
users.

    python tests/benchmarks/unknown.py --ckpt_path CKPT --data.root data/demo
"""

import argparse
import itertools
import json

import numpy as np
import torch

from newsrec.data import FIRST_NEWS
from newsrec.evaluation.intervals import mean_interval
from newsrec.metrics import METRICS, impression_metrics
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.trained_run import TrainedRun


def rules():
    """Name of each rule, and what it gives unknown candidates from the known ones' scores."""

    def quantile(share):
        return lambda known, mean: np.quantile(known, share)

    def shrunk(weight):
        return lambda known, mean: (known.sum() + weight * mean) / (len(known) + weight)

    return {
        "mean news vector": lambda known, mean: mean,  # which is the user's mean score over all
        "nearer to the known, 5": shrunk(5),
        "nearer to the known, 20": shrunk(20),
        "lower of the two means": lambda known, mean: min(mean, known.mean()),
        "first": lambda known, mean: known.max() + 1,
        "last": lambda known, mean: known.min() - 1,
        "mean of the known": lambda known, mean: known.mean(),
        "quantile .25": quantile(0.25),
        "median": quantile(0.5),
        "quantile .6": quantile(0.6),
        "quantile .75": quantile(0.75),
    }


def scored(module, vectors, data, gone):
    """Scores of all candidates as if the rows ``gone`` were in no news.tsv, and whose they are."""
    known = np.ones(len(vectors), dtype=bool)
    known[:FIRST_NEWS], known[gone] = False, False
    mean = vectors[torch.from_numpy(known)].mean(dim=0)
    scores, means, unknown, rows, counts = [], [], [], [], []
    for batch in data.predict_dataloader():
        history = batch.history.numpy()
        kept = np.where(known[history], history, 0)
        order = np.argsort(kept == 0, axis=1, kind="stable")  # what is left moves together
        history = torch.from_numpy(np.take_along_axis(kept, order, axis=1))
        count = batch.offsets.diff()
        with torch.no_grad():
            users = module.recommender.encode_user(vectors, history)[:, 0]
        user = users[batch.user.repeat_interleave(count)]
        scores.append((user * vectors[batch.candidates]).sum(dim=1).numpy())
        means.append((users[batch.user] @ mean).numpy())
        unknown.append(~known[batch.candidates.numpy()])
        rows.append(batch.row.numpy())
        counts.append(count.numpy())
    return [np.concatenate(part) for part in (scores, means, unknown, rows, counts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--data.root", dest="root", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--share", type=float, default=0.05, help="of the candidates' news items")
    parser.add_argument("--draws", type=int, default=20)
    args = parser.parse_args()

    run = TrainedRun.open(args.ckpt_path, args.root, args.split)
    module, data = run.module, run.data
    part = data.data.split(args.split)
    vectors = encode_catalogue(module.recommender, data.catalogue)
    shown = np.unique(part.candidates.values)
    shown = shown[shown >= FIRST_NEWS]

    values = {name: [] for name in rules()}
    users, touched, candidates, unknowns, clicks = [], [], 0, 0, [0, 0]
    for draw in range(args.draws):
        gone = np.random.default_rng(draw).choice(
            shown, round(args.share * len(shown)), replace=False
        )
        scores, means, unknown, rows, counts = scored(module, vectors, data, gone)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        ends = part.candidates.offsets
        labels = np.concatenate([part.labels[ends[r] : ends[r + 1]] for r in rows])
        candidates, unknowns = candidates + len(labels), unknowns + int(unknown.sum())
        clicks[0] += int(labels.sum())
        clicks[1] += int(labels[unknown].sum())
        parts = list(itertools.pairwise(offsets))
        has = np.array([unknown[a:b].any() and not unknown[a:b].all() for a, b in parts])
        for name, rule in rules().items():
            changed = scores.copy()
            for i in np.flatnonzero(has):
                a, b = parts[i]
                out = unknown[a:b]
                changed[a:b][out] = rule(scores[a:b][~out], means[i])
            measured = impression_metrics(changed, labels, offsets)
            values[name].append(measured.values)
        valid = measured.valid & has
        touched.append(valid)
        users.append(part.user[rows])
    some = np.concatenate(touched)
    owner = np.concatenate(users)[some]
    joined = {name: np.concatenate(found, axis=1) for name, found in values.items()}
    base = joined["mean news vector"][0, some]
    result = {
        "share of candidates unknown": unknowns / candidates,
        "share of them clicked": clicks[1] / unknowns,
        "share of all clicked": clicks[0] / candidates,
        "impressions with an unknown candidate": int(some.sum()) // args.draws,
        "of": len(part.history),
        "rules": {},
    }
    for name, found in joined.items():
        low, high = mean_interval((found[0, some] - base)[None], owner)[0]
        result["rules"][name] = {
            metric: round(float(np.nanmean(row)), 4)
            for metric, row in zip(METRICS, found, strict=True)
        } | {
            "auc where it matters": round(float(found[0, some].mean()), 4),
            "gain there": [round(float(v), 4) for v in (np.mean(found[0, some] - base), low, high)],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
