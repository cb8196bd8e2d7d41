"""How long all metrics beyond accuracy of one ranking take, and how much memory.

    python tests/benchmarks/beyond.py [--impressions 376471] [--baselines 7] [--annotations]
    python tests/benchmarks/beyond.py --trade_off

Prints one JSON object. Impressions have about as many candidates as MIND's dev, users as many
clicks; a news vector has 384 numbers. The reference is a loop over impressions, on a part of them:
it must give the same numbers, or the benchmark fails. Memory is the growth of
the process's own memory. ``--trade_off`` measures the trade-off instead, without a reference.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from newsrec.evaluation.beyond import PER_IMPRESSION
from newsrec.evaluation.beyond_lists import centred, draw_others
from newsrec.evaluation.beyond_results import Beyond, beyond_accuracy
from newsrec.evaluation.rerank import MOST, trade_off
from newsrec.metrics import ranks

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from beyond_worlds import VOICES, by_loop, random_data, voices_of
from submission import measured

PART = 500
"""Impressions that the reference goes through."""


def main() -> None:
    """Measure, compare with the loop and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--impressions", type=int, default=376_471)
    parser.add_argument("--news", type=int, default=72_023)
    parser.add_argument("--dim", type=int, default=384)
    use = "number of further rankings to measure beside it, as baselines"
    parser.add_argument("--baselines", type=int, default=0, help=use)
    use = "give the news sentiments and named entities, and measure these with a file of voices"
    parser.add_argument("--annotations", action="store_true", help=use)
    use = "measure the trade-off of all rules of re-ranking instead"
    parser.add_argument("--trade_off", action="store_true", help=use)
    args = parser.parse_args()
    size = (args.impressions, args.news, args.dim)
    data, scores, vectors = random_data(*size, annotated=args.annotations)
    known = VOICES if args.annotations else None
    voices = None if known is None else voices_of(known)
    split = data.split("train")
    if args.trade_off:
        cost = measured(lambda: trade_off(data, "train", scores, vectors, vectors, voices))
        result = {"impressions": args.impressions, "measured": min(MOST, args.impressions), **cost}
        print(json.dumps(result, indent=1))
        return
    rank = ranks(scores, split.candidates.offsets)
    others = {str(number): rank for number in range(args.baselines)}
    found: list[Beyond] = []
    cost = measured(
        lambda: found.append(beyond_accuracy(data, "train", rank, others, vectors, voices))
    )
    drawn = draw_others(split.user, 0)
    rows = range(0, args.impressions, max(1, args.impressions // PART))
    expected = by_loop(data, scores, centred(vectors).astype(np.float64), drawn, rows, voices=known)
    table = np.array([[line[name] for line in expected] for name in PER_IMPRESSION])
    np.testing.assert_allclose(found[0].values[:, list(rows)], table, atol=2e-6, rtol=2e-6)
    result = {
        "impressions": args.impressions,
        "candidates": len(split.candidates.values),
        "clicks": len(split.histories.values),
        "baselines": args.baselines,
        "metrics": len(found[0].metrics["metrics"]),
        **cost,
        "compared_with_a_loop": len(rows),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
