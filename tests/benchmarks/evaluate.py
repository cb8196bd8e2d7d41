"""How fast scores become MIND's metrics, and how fast a model scores a split.

    python tests/benchmarks/evaluate.py                      # the metrics alone
    python tests/benchmarks/evaluate.py --data.root DIR      # and a model on DIR's dev

Prints one JSON object. The metrics are those of random scores for as many impressions as
MIND-large's dev has; memory is the whole process's, Python and the scores included. The reference
is the loop that most code has (scikit-learn's AUC and the official evaluator's formulas, one
impression after the other) over a part of them, and every value must agree. The model is the
default one, untrained, with the default PLM in ``--precision``: dev is scored as ``evaluate`` does,
from tokenised news items to metrics with intervals, no baselines beside them. ``news_share`` is
how fast the news are encoded, in matrix products of real tokens, as a share of the speed of one
large float32 product, measured just before (best of six).
"""

import argparse
import json
import os
import platform
import resource
import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from newsrec.data.ragged import to_offsets
from newsrec.data.readers.formats import reader_of
from newsrec.errors import UserError
from newsrec.metrics import METRICS, impression_metrics
from newsrec.shipped import data_folder

PART = 5_000
"""Impressions that the reference goes through."""
TOLERANCE = 1e-9

Case = tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int64]]


def random_case(number: int) -> Case:
    """Return scores, labels and offsets; an impression has about as many candidates as MIND's."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(25), 0.94, number), 2, 300).astype(np.int64)
    offsets = to_offsets(lengths)
    labels = (rng.random(offsets[-1], dtype=np.float32) < 0.015).astype(np.int8)
    labels[offsets[:-1] + rng.integers(0, lengths)] = 1
    return rng.random(len(labels), dtype=np.float32).round(4), labels, offsets  # some ties


def dcg(ranked: NDArray[np.int8], k: int) -> float:
    """Return the discounted gain of labels in rank order."""
    ranked = ranked[:k]
    return float(np.sum((2.0**ranked - 1) / np.log2(np.arange(len(ranked)) + 2)))


def one_impression(scores: NDArray[np.float32], labels: NDArray[np.int8]) -> list[float]:
    """Return the four metrics of one impression; NaN where it has no click or no skip."""
    if not 0 < labels.sum() < len(labels):
        return [np.nan] * 4
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(order))
    rank[order] = np.arange(1, len(order) + 1)
    ranked, ideal = labels[order], np.sort(labels)[::-1]
    return [
        roc_auc_score(labels, 1 / rank),
        float(np.sum(labels / rank) / labels.sum()),
        dcg(ranked, 5) / dcg(ideal, 5),
        dcg(ranked, 10) / dcg(ideal, 10),
    ]


def measure_metrics(number: int) -> dict:
    """Return how long the metrics of random scores take, and how much longer the loop does."""
    scores, labels, offsets = random_case(number)
    impression_metrics([1.0, 0.5], [1, 0], [0, 2])  # first calls are not measured
    wall, cpu = time.perf_counter(), time.process_time()
    found = impression_metrics(scores, labels, offsets)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    part = np.unique(np.linspace(0, number - 1, min(PART, number)).astype(int))
    one_impression(scores[:2], np.array([1, 0], dtype=np.int8))
    start = time.process_time()
    expected = [
        one_impression(scores[begin:end], labels[begin:end])
        for begin, end in zip(offsets[part], offsets[part + 1], strict=True)
    ]
    loop = (time.process_time() - start) * number / len(part)
    np.testing.assert_allclose(found.values[:, part].T, expected, rtol=0, atol=TOLERANCE)
    return {
        "impressions": number,
        "candidates": len(scores),
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "peak_mb_of_process": round(peak),
        "reference": {
            "equal_impressions": len(part),
            "cpu_s_for_all": round(loop, 1),
            "is_slower_by": round(loop / cpu),
        },
    }


def measure_model(root: str, split: str, precision: str) -> dict:
    """Return how long a model takes for a split: news items through the PLM, scores, metrics."""
    from lightning import Trainer

    from newsrec.data.datamodule import MindDataModule
    from newsrec.data.states import distinct_rows
    from newsrec.evaluation.results import compute_results
    from newsrec.evaluation.scoring import score_split
    from newsrec.training.callbacks import ScoreCollector
    from newsrec.training.hardware.precision import TRAINERS
    from newsrec.training.module import RecommenderModule
    from newsrec.training.progress.throughput import encoding_flop, matrix_rate

    encoded = 0.0

    class Timed(RecommenderModule):
        def encode_news(self) -> torch.Tensor:
            nonlocal encoded
            vectors = super().encode_news()
            encoded = time.perf_counter()
            return vectors

    datamodule = MindDataModule(root)
    datamodule.predict_on(split)
    datamodule.setup("predict")  # compiled and tokenised once for all runs: not measured
    if datamodule.data.split(split).labels is None:
        raise UserError(f"--split {split} has no labels, so it has no metrics. Choose another.")
    torch.manual_seed(0)
    module = Timed()
    module.configure_model()
    trainer = Trainer(
        accelerator="cpu",
        precision=TRAINERS[precision],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[ScoreCollector()],
        use_distributed_sampler=False,
    )
    rate = matrix_rate(torch.device("cpu"), "32-true")
    start = time.perf_counter()
    scores = score_split(trainer, module, datamodule, split)
    scored = time.perf_counter()
    assert scores is not None
    metrics = compute_results(datamodule.data, split, scores).metrics
    end = time.perf_counter()
    catalogue = datamodule.catalogue
    lengths = catalogue.token_lengths[distinct_rows(catalogue)]
    flop = encoding_flop(
        module.recommender.news_encoder, int(lengths.sum()), int((lengths * lengths).sum())
    )
    return {
        "split": split,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "matrix_gflops": round(rate / 1e9, 1),
        "news": len(catalogue.first),
        "news_share": round(flop / (encoded - start) / rate, 3),
        "impressions": metrics["impressions"],
        "candidates": len(scores),
        "news_s": round(encoded - start, 1),
        "scores_s": round(scored - encoded, 2),
        "metrics_s": round(end - scored, 2),
        "after_news_s": round(end - encoded, 2),
        "impressions_per_s": round(metrics["impressions"] / (end - start)),
        **{name: metrics[name] for name in METRICS},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--impressions", type=int, default=376_471)
    parser.add_argument("--data.root", dest="root", help="data folder, for a model's speed")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    args = parser.parse_args()
    if args.impressions < 1:
        parser.error(f"--impressions is {args.impressions}; it must be at least 1")
    try:
        result = measure(args)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(json.dumps(result, indent=1))


def measure(args: argparse.Namespace) -> dict:
    """Return all measurements.

    Raises:
        UserError: If there is no such split, or it has no labels.
    """
    if args.root is not None:  # found before the long work
        splits = reader_of(data_folder(args.root)).find_splits(data_folder(args.root))
        if args.split not in splits:
            raise UserError(
                f"--split {args.split}: {args.root} has {', '.join(splits)}. Choose one of these."
            )
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "metrics": measure_metrics(args.impressions),
    }
    if args.root is not None:
        result["model"] = measure_model(args.root, args.split, args.precision)
    return result


if __name__ == "__main__":
    main()
