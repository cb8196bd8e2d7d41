"""The command ``evaluate``: a checkpoint or a baseline over a split, in MIND's own metrics."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from newsrec.console import is_first_process
from newsrec.data.mind import open_mind
from newsrec.data.source import SPLITS
from newsrec.data.splits import LAST_DAY, choose_splits
from newsrec.errors import UserError
from newsrec.evaluation.baselines import (
    BASELINES,
    clicks_of,
    describe_baselines,
    score_baseline,
    scores_beside,
)
from newsrec.evaluation.ensemble import ENSEMBLES
from newsrec.evaluation.examples import choose_examples
from newsrec.evaluation.html_report import html_page
from newsrec.evaluation.plm_means import plm_vectors
from newsrec.evaluation.raw_scores import write_scores
from newsrec.evaluation.report import print_results, read_ceiling, read_curves
from newsrec.evaluation.results import compute_results, per_impression_table
from newsrec.evaluation.results import evaluate_scores as evaluate_scores  # for those who score
from newsrec.evaluation.scoring import FROM_CHECKPOINT, Scored, score_checkpoints
from newsrec.evaluation.submission import write_predictions
from newsrec.files import publish, require_empty, require_replaceable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


METRICS_FILE = "metrics.json"
PREDICTION_FILE = "prediction.zip"
IMPRESSIONS_FILE = "per_impression.parquet"
SCORES_FILE = "scores.parquet"
PAGE_FILE = "report.html"


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the command's options."""
    from lightning import Trainer

    baselines = "; ".join(f"{name}: {text}" for name, text in describe_baselines().items())
    parser.add_argument(
        "--ckpt_path",
        nargs="+",
        help="checkpoint that fit wrote: runs/NAME/.../best.ckpt; several make an ensemble",
    )
    averages = "; ".join(f"{name}: {text}" for name, text in ENSEMBLES.items())
    parser.add_argument(
        "--ensemble", choices=tuple(ENSEMBLES), help=f"average over checkpoints. {averages}"
    )
    parser.add_argument(
        "--scorer", choices=BASELINES, help=f"a baseline instead of a checkpoint. {baselines}"
    )
    parser.add_argument("--data.root", required=True, help="data folder")
    parser.add_argument("--data.eval_batch_size", type=int, help="impressions per step")
    parser.add_argument("--data.num_workers", type=int, help="processes that prepare batches")
    parser.add_argument(
        "--data.on_bad_line",
        choices=("error", "skip"),
        help="what to do with a line that cannot be read: stop, or leave it out and count it",
    )
    for name, kind in FROM_CHECKPOINT.items():
        parser.add_argument(
            f"--{name}",
            type=kind | None,
            help="of the baseline cosine; a checkpoint brings its own",
        )
    parser.add_argument(
        "--split",
        choices=(*SPLITS, LAST_DAY),
        required=True,
        help="split to score; last_day is that of train, which the checkpoint must not have seen",
    )
    parser.add_argument("--output", required=True, help="folder for the results, absent or empty")
    parser.add_argument(
        "--baselines",
        type=bool,
        default=True,
        help="set the baselines beside it where there are labels; cosine costs a PLM pass",
    )
    parser.add_argument(
        "--scores",
        type=bool,
        default=False,
        help=f"also write every candidate's raw score, into {SCORES_FILE}",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        default="fp32",
        help="of encoding stories and users; auto takes bf16 where it is measured 1.3 times as "
        "fast; recorded in metrics.json",
    )
    parser.add_class_arguments(
        Trainer,
        "trainer",
        skip={"precision", "logger", "callbacks", "use_distributed_sampler", "default_root_dir"},
    )
    parser.set_defaults(
        {
            "trainer.enable_checkpointing": False,
            "trainer.enable_model_summary": False,
        }
    )


def run(args: "Namespace") -> None:
    """Score the split, print the metrics and write them with the leaderboard's file."""
    from newsrec.training.together import one_fate_from_the_start

    with one_fate_from_the_start():
        _run(args)


def _run(args: "Namespace") -> None:
    from newsrec.training.mistakes import check_scoring

    if (args.ckpt_path is None) == (args.scorer is None):
        raise UserError("Give either --ckpt_path CKPT or --scorer NAME.")
    _check_ensemble(args.ckpt_path or [], args.ensemble)
    check_scoring(args.trainer)
    if args.scorer is not None and not is_first_process():
        return  # torchrun started it beside another, which is enough for a baseline
    output = Path(args.output)
    require_empty(output)
    if is_first_process():  # it writes in the end, so a place it cannot write to shows now
        require_replaceable(output)
    # What only adorns the report is read first, so that nothing in it can cost the scores.
    ceiling = read_ceiling(Path(args.data.root), args.split)
    single = args.ckpt_path is not None and len(args.ckpt_path) == 1
    curves = read_curves(Path(args.ckpt_path[0])) if single else None
    scored = _score_baseline(args) if args.scorer is not None else score_checkpoints(args)
    if scored is None:  # not the first process
        return
    title, data, scores, vectors, info = scored
    split = data.split(args.split)
    others = {}
    if args.baselines and split.labels is not None:
        others = scores_beside(data, args.split, vectors, leave_out=args.scorer)
    results = compute_results(data, args.split, scores, others)
    results.metrics.update(info)

    def build(folder: Path) -> None:
        (folder / METRICS_FILE).write_text(
            json.dumps(results.metrics, indent=1) + "\n", encoding="utf-8"
        )
        offsets = split.candidates.offsets
        write_predictions(folder / PREDICTION_FILE, split.impression_id, results.ranks, offsets)
        if split.labels is not None:
            pq.write_table(
                per_impression_table(data, args.split, results), folder / IMPRESSIONS_FILE
            )
        if args.scores:
            write_scores(folder / SCORES_FILE, data, args.split, scores)
        examples = choose_examples(data, args.split, scores, results)
        page = html_page(title, results.metrics, ceiling, examples, curves)
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")

    publish(output, build)
    names = [METRICS_FILE, PREDICTION_FILE, IMPRESSIONS_FILE, SCORES_FILE, PAGE_FILE]
    written = [name for name in names if (output / name).is_file()]
    print_results(title, results.metrics, ceiling, output, written)


def _score_baseline(args: "Namespace") -> Scored:
    data = open_mind(args.data.root, args.data.on_bad_line or "error")
    if args.split == LAST_DAY:
        data = choose_splits(data, val=LAST_DAY)
    vectors = None
    if args.scorer == "cosine":
        from newsrec.data.datamodule import MindDataModule

        names = ("fields", "max_tokens", "on_bad_line")
        given = {name: args[f"data.{name}"] for name in names}
        options = {name: value for name, value in given.items() if value is not None}
        if args.model.plm is not None:
            options["plm"] = args.model.plm
        datamodule = MindDataModule(root=args.data.root, **options)
        datamodule.setup("predict")
        vectors = plm_vectors(datamodule)
    train = data.splits.get(data.train)
    info = {
        "scorer": args.scorer,
        "selected_on": None,
        "trained_on": {} if train is None else {train.name: train.window},
        "precision": None,
        "clicks_of": {s.name: s.window for s in clicks_of(args.scorer, data)},
    }
    scores = score_baseline(args.scorer, data, args.split, news_vectors=vectors)
    return Scored(f"baseline {args.scorer}", data, scores, vectors, info)


def _check_ensemble(paths: list[str], ensemble: str | None) -> None:
    if len(paths) > 1 and ensemble is None:
        raise UserError(
            f"--ckpt_path has {len(paths)} checkpoints. Choose how to average their scores by "
            f"--ensemble {' or --ensemble '.join(ENSEMBLES)}, or give one."
        )
    if len(paths) < 2 and ensemble is not None:
        given = "one checkpoint" if paths else "a baseline"
        raise UserError(
            f"--ensemble {ensemble} averages over several checkpoints, and {given} is given. Leave "
            "it out, or give more: --ckpt_path A B."
        )
