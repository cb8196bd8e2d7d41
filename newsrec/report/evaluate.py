"""Evaluate a split and write the folder of results: metrics, ranks and a page."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from newsrec.console import is_first_process
from newsrec.data.dataset import NewsData
from newsrec.errors import UserError
from newsrec.evaluation.baselines import scores_beside
from newsrec.evaluation.beyond_results import Beyond, beyond_accuracy, with_beyond
from newsrec.evaluation.error_analysis import analyse
from newsrec.evaluation.raw_scores import write_scores
from newsrec.evaluation.rerank import Rerank, trade_off
from newsrec.evaluation.results import Results, compute_results, per_impression_table
from newsrec.evaluation.runs import IMPRESSIONS_FILE, METRICS_FILE
from newsrec.evaluation.scoring import Scored
from newsrec.evaluation.submission import write_predictions, zip_name
from newsrec.evaluation.voices import Voices
from newsrec.files import publish, require_empty, require_replaceable
from newsrec.metrics import ranks
from newsrec.report.examples import choose_examples, examples_of
from newsrec.report.page import html_page
from newsrec.report.terminal import PAGE_FILE, read_ceiling, read_config, read_curves, read_oracles
from newsrec.shipped import data_folder

log = logging.getLogger(__name__)

SCORES_FILE = "scores.parquet"


class Evaluation(NamedTuple):
    """The results of an evaluated split."""

    title: str
    """The scorer: a checkpoint's path, an ensemble or a baseline."""
    metrics: dict[str, Any]
    """Content of ``metrics.json``."""
    ceiling: dict[str, float] | None
    """Metrics that the true click probabilities of a simulated world reach, None elsewhere."""
    oracles: dict[str, float]
    """AUC of a simulated world's oracles, each of which lacks some knowledge; else empty."""
    written: list[str]
    """Names of the files in the folder."""


class Measured(NamedTuple):
    """All that is computed of a split's scores."""

    results: Results
    beyond: Beyond | None
    """Metrics beyond accuracy; None if they are turned off or there are no impressions."""
    worst: list[int]
    """Rows of the impressions that lose most against the best baseline."""


def measure_split(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    baselines: Mapping[str, NDArray[np.float32]],
    vectors: NDArray[np.floating] | None,
    logits: NDArray[np.floating] | None,
    beyond: bool = True,
    voices: Voices | None = None,
) -> Measured:
    """Compute the metrics of a split's scores ``[candidates]``, errors and metrics beyond accuracy.

    ``baselines`` are scores by name; ``vectors`` are the news vectors of the baseline ``cosine``,
    or None; ``logits`` the model's scores, if a softmax makes probabilities of them. ``voices``
    says which named entities count.
    """
    part = data.split(split)
    results = compute_results(data, split, scores, baselines)
    worst: list[int] = []
    if results.values is not None and results.metrics["evaluated"]:
        errors = analyse(part, results.values, results.slices, baselines, logits)
        results.metrics["errors"], worst = errors.metrics, errors.worst.tolist()
    aspects: Beyond | None = None
    if beyond and len(part.history):
        offsets = part.candidates.offsets
        beside = {name: ranks(values, offsets) for name, values in baselines.items()}
        aspects = beyond_accuracy(data, split, results.ranks, beside, vectors, voices)
        results.metrics["beyond"] = aspects.metrics
    return Measured(results, aspects, worst)


def evaluate(
    score: Callable[[], Scored | None],
    root: str | Path,
    split: str,
    output: str | Path | None,
    *,
    ckpt_path: str | Path | None = None,
    leave_out: str | None = None,
    baselines: bool = True,
    raw_scores: bool = False,
    beyond: bool = True,
    voices: Voices | None = None,
    rerank: Rerank | None = None,
    measure_trade_off: bool = False,
) -> Evaluation | None:
    """Score a split, compute its metrics, and write the folder of results, whole or not at all.

    ``output``, absent or empty, is checked before ``score`` scores anything; None writes nothing.
    The page shows curves and configuration of the run of ``ckpt_path``; ``leave_out`` is a baseline
    to leave out of the comparison. ``raw_scores`` writes every candidate's score, too; ``beyond``
    measures the best-ranked news beyond accuracy, and ``voices`` says which named entities count
    there. ``rerank`` changes the first news of each impression, and ``measure_trade_off`` measures
    what that costs and gains, on a split with labels. Returns the results on the first process,
    None on the others.
    """
    if voices is not None and not beyond:
        raise UserError(
            f"--voices {voices.path} needs the metrics beyond accuracy, and --beyond is false. "
            "Leave one of them out."
        )
    folder = None if output is None else Path(output)
    if folder is not None:
        require_empty(folder)
        if is_first_process():  # the process that writes at the end
            require_replaceable(folder)
    # Read what else the page shows first, so that an error in it does not lose the scores.
    world = data_folder(root)
    shown: dict[str, Any] = {
        "ceiling": read_ceiling(world, split),
        "oracles": read_oracles(world, split),
        "curves": None if ckpt_path is None else read_curves(Path(ckpt_path)),
        "config": None if ckpt_path is None else read_config(Path(ckpt_path)),
    }
    scored = score()
    if scored is None:
        return None
    data, vectors, own_vectors = scored.data, scored.news_vectors, scored.model_vectors
    labelled = data.split(split).labels is not None
    # Only one model's scores, lowered by age at most, are logits of a softmax.
    logits = scored.scores if own_vectors is not None and "repeats" not in scored.info else None
    if measure_trade_off:
        found = None
        if labelled:
            aged = scored.info.get("half_life", {}).get("hours") is not None
            by_age = leave_out is None and not aged  # a baseline's scores are no logits
            found = trade_off(data, split, scored.scores, own_vectors, vectors, voices, by_age)
        if found is None:
            lacks = "clicked beside a skipped candidate" if labelled else "labels"
            log.warning(
                "--trade_off compares with clicks, and %s has no %s: left out.", split, lacks
            )
        else:
            scored = scored._replace(info=scored.info | {"trade_off": found})
    ranked = scored.scores
    if rerank is not None:
        ranked = rerank.apply(data, split, scored.scores, own_vectors)
        scored = scored._replace(info=scored.info | {"rerank": rerank.described()})
    others = {}
    if baselines and labelled:
        others = scores_beside(data, split, vectors, leave_out=leave_out)
    measured = measure_split(data, split, ranked, others, vectors, logits, beyond, voices)
    metrics = measured.results.metrics | scored.info
    written: list[str] = []
    if folder is not None:
        publish(
            folder, lambda new: _write(new, scored, split, measured, metrics, shown, raw_scores)
        )
        prediction = zip_name(data.submission)
        names = [METRICS_FILE, prediction, IMPRESSIONS_FILE, SCORES_FILE, PAGE_FILE]
        written = [name for name in names if (folder / name).is_file()]
    return Evaluation(scored.title, metrics, shown["ceiling"], shown["oracles"], written)


def _write(
    folder: Path,
    scored: Scored,
    split: str,
    measured: Measured,
    metrics: dict[str, Any],
    shown: dict[str, Any],
    raw_scores: bool,
) -> None:
    """Write the files of a split's results; the page also has what is in ``shown``."""
    data, scores, results = scored.data, scored.scores, measured.results
    part = data.split(split)
    text = json.dumps(metrics, indent=1)
    (folder / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
    ranking = part.impression_id, results.ranks, part.candidates.offsets
    write_predictions(folder / zip_name(data.submission), *ranking, data.submission)
    if part.labels is not None:
        table = per_impression_table(data, split, results)
        if measured.beyond is not None:
            table = with_beyond(table, measured.beyond)
        pq.write_table(table, folder / IMPRESSIONS_FILE)
    if raw_scores:
        write_scores(folder / SCORES_FILE, data, split, scores)
    examples = choose_examples(data, split, scores, results, scored.explain)
    losses = examples_of(data, split, scores, results, measured.worst, scored.explain)
    page = html_page(scored.title, metrics, examples=examples, losses=losses, **shown)
    (folder / PAGE_FILE).write_text(page, encoding="utf-8")
