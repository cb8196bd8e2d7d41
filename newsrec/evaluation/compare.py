"""Compare two results of ``evaluate``, with confidence intervals.

The two are paired impression by impression, so the difficulty of an impression cancels out. With
several runs on a side, each impression's values are averaged over the runs, and a second interval
covers the training seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.console import progress
from newsrec.evaluation.beyond_lists import list_distances
from newsrec.evaluation.beyond_results import differences, unlike_metrics
from newsrec.evaluation.intervals import FEWEST_USERS, holm, mean_interval, sign_flip_p
from newsrec.evaluation.names import COUNTS
from newsrec.evaluation.power import MARGIN, power_of
from newsrec.evaluation.runs import EvaluatedRun, Paired, has_seed, pair
from newsrec.evaluation.seeds import seed_interval
from newsrec.evaluation.slices import clusters
from newsrec.metrics import METRICS

SLOW_IMPRESSIONS = 200_000
"""With fewer impressions, counted in every slice, no progress bar is shown."""
USERS = "the choice of users, not the training seed"
SEEDS = "the choice of users and the training seeds"


def compare(
    a: Sequence[EvaluatedRun],
    b: Sequence[EvaluatedRun],
    metric: str = "auc",
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Return the differences of two sides' runs, their intervals and p-values, ready for JSON.

    ``metric`` is compared in each group of each slice. ``margin`` is the difference from which on
    two sides are not equivalent. The runs must be of the same impressions.
    """
    paired = pair(a, b)
    means_a, means_b = paired.a.mean(axis=0), paired.b.mean(axis=0)
    difference = means_a - means_b
    bounds = mean_interval(difference, paired.users).tolist()
    metrics: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(METRICS):
        metrics[name] = {
            "a": float(means_a[row].mean()),
            "b": float(means_b[row].mean()),
            "difference": float(difference[row].mean()),
            "interval": bounds[row],
            "p": sign_flip_p(difference[row], paired.users),
            **power_of(difference[row], paired.users, margin),
        }
        if len(a) + len(b) > 2:
            metrics[name] |= _over_seeds(a, b, paired, row)
    first = a[0].metrics
    unlike = unlike_metrics([*a, *b])
    noted = {name: first[name] for name in COUNTS if name in first}
    return {
        "split": first["split"],
        "window": first.get("window"),
        "data_fingerprint": first.get("data_fingerprint"),
        **noted,
        "a": [_describe(run) for run in a],
        "b": [_describe(run) for run in b],
        "impressions": paired.impressions,
        "evaluated": difference.shape[1],
        "users": len(np.unique(paired.users)),
        "covers": {"interval": USERS, "p": USERS, "over_seeds": SEEDS},
        "margin": margin,
        "metrics": metrics,
        "beyond": differences(a, b, {name for names in unlike.values() for name in names}),
        "beyond_left_out": unlike,
        "list_distances": list_distances(a, b),
        "slice_metric": metric,
        "slices": _by_group(paired, means_a, means_b, METRICS.index(metric)),
        "slices_left_out": paired.unlike,
    }


def _over_seeds(
    a: Sequence[EvaluatedRun], b: Sequence[EvaluatedRun], paired: Paired, row: int
) -> dict[str, Any]:
    """Return the mean of each run, and an interval and p that cover the training seeds.

    ``over_seeds`` is None if a side has only one run of a model that depends on a seed.
    """
    runs_a, runs_b = paired.a[:, row], paired.b[:, row]
    result: dict[str, Any] = {
        "a_runs": runs_a.mean(axis=1).tolist(),
        "b_runs": runs_b.mean(axis=1).tolist(),
        "over_seeds": None,
    }
    if not any(len(side) == 1 and has_seed(side[0]) for side in (a, b)):
        low, high, p, freedom = seed_interval(runs_a, runs_b, paired.users)
        result["over_seeds"] = {
            "interval": [low, high],
            "p": p,
            "freedom": freedom if np.isfinite(freedom) else None,
        }
    return result


def _by_group(
    paired: Paired, a: NDArray[np.float64], b: NDArray[np.float64], row: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare each group of each slice that has at least two; adjust p for the number of groups."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    tests: list[dict[str, Any]] = []
    total = len(paired.slices) * a.shape[1]
    with progress("groups", total, SLOW_IMPRESSIONS, lambda rate: f"{rate:,.0f}/s") as advance:
        for name, (groups, code) in paired.slices.items():
            members = {group: np.flatnonzero(code == number) for number, group in enumerate(groups)}
            members = {group: inside for group, inside in members.items() if len(inside)}
            if len(members) < 2:
                continue
            result[name] = {}
            for group, inside in members.items():
                difference, users = (a - b)[row, inside], paired.users[inside]
                test: dict[str, Any] = {
                    "impressions": len(inside),
                    "users": len(np.unique(users)),
                    "a": float(a[row, inside].mean()),
                    "b": float(b[row, inside].mean()),
                    "difference": float(difference.mean()),
                    "interval": None,
                    "p": None,
                    "p_holm": None,
                }
                if test["users"] >= FEWEST_USERS:
                    test["interval"] = mean_interval(difference, clusters(users)).tolist()
                    test["p"] = sign_flip_p(difference, users)
                    tests.append(test)
                result[name][group] = test
                advance(len(inside))
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = float(adjusted)
    return result


def _describe(run: EvaluatedRun) -> dict[str, Any]:
    known = (
        "scorer", "ensemble", "checkpoint_sha256", "precision", "selected_on", "trained_on",
        "other_data", "repeats", "half_life", "rerank",
    )  # fmt: skip
    return {"folder": str(run.folder)} | {key: run.metrics.get(key) for key in known}
