"""The command ``evaluate``: a checkpoint or a baseline over a split, in MIND's own metrics."""

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from newsrec.data.cache import file_hash, publish, require_empty
from newsrec.data.mind import MindData, open_mind
from newsrec.data.source import SPLITS
from newsrec.data.splits import LAST_DAY, choose_splits
from newsrec.errors import UserError
from newsrec.evaluation.baselines import (
    BASELINES,
    clicks_of,
    describe_baselines,
    score_baseline,
)
from newsrec.evaluation.examples import choose_examples
from newsrec.evaluation.html_report import html_page
from newsrec.evaluation.plm_means import note_means, plm_vectors, vectors_before_training
from newsrec.evaluation.report import print_results, read_ceiling, read_curves
from newsrec.evaluation.results import compute_results, per_impression_table
from newsrec.evaluation.results import evaluate_scores as evaluate_scores  # for those who score
from newsrec.evaluation.submission import write_predictions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
PREDICTION_FILE = "prediction.zip"
IMPRESSIONS_FILE = "per_impression.parquet"
PAGE_FILE = "report.html"

FROM_CHECKPOINT = {
    "data.fields": list[str],
    "data.max_tokens": int,
    "data.max_history": int,
    "model.plm": str,
}
"""Options that the checkpoint answers; giving another value is an error, not an override."""


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the command's options."""
    from lightning import Trainer

    baselines = "; ".join(f"{name}: {text}" for name, text in describe_baselines().items())
    parser.add_argument("--ckpt_path", help="checkpoint that fit wrote: runs/NAME/.../best.ckpt")
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
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of encoding stories and users; recorded in metrics.json",
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


class Scored(NamedTuple):
    """A split's scores and where they come from."""

    title: str
    data: MindData
    scores: NDArray[np.float32]
    """In the order of the file ``[candidates]``."""
    news_vectors: NDArray[np.float32] | None
    """The PLM's mean states, for the baseline ``cosine``, if at hand ``[news, hidden]``."""
    info: dict[str, Any]
    """What ``metrics.json`` says of the scorer."""


def run(args: "Namespace") -> None:
    """Score the split, print the metrics and write them with the leaderboard's file."""
    if (args.ckpt_path is None) == (args.scorer is None):
        raise UserError("Give either --ckpt_path CKPT or --scorer NAME.")
    output = Path(args.output)
    require_empty(output)
    scored = _score_baseline(args) if args.scorer is not None else _score_checkpoint(args)
    if scored is None:  # not the first process
        return
    title, data, scores, vectors, info = scored
    split = data.split(args.split)
    others = {}
    if args.baselines and split.labels is not None:
        others = _other_scores(data, args.split, args.scorer, vectors)
    results = compute_results(data, args.split, scores, others)
    results.metrics.update(info)
    ceiling = read_ceiling(data.root, args.split)

    def build(folder: Path) -> None:
        (folder / METRICS_FILE).write_text(json.dumps(results.metrics, indent=1) + "\n")
        offsets = split.candidates.offsets
        write_predictions(folder / PREDICTION_FILE, split.impression_id, results.ranks, offsets)
        if split.labels is not None:
            pq.write_table(
                per_impression_table(data, args.split, results), folder / IMPRESSIONS_FILE
            )
        curves = None if args.ckpt_path is None else read_curves(Path(args.ckpt_path))
        examples = choose_examples(data, args.split, scores, results)
        page = html_page(title, results.metrics, ceiling, examples, curves)
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")

    publish(output, build)
    names = [METRICS_FILE, PREDICTION_FILE, IMPRESSIONS_FILE, PAGE_FILE]
    written = [name for name in names if (output / name).is_file()]
    print_results(title, results.metrics, ceiling, output, written)


def score_split(
    trainer: Any, module: "RecommenderModule", datamodule: "MindDataModule", split: str
) -> NDArray[np.float32] | None:
    """Score every candidate of a split on all the trainer's processes.

    Args:
        trainer: A Lightning Trainer with a ``ScoreCollector`` among its callbacks.
        module: The model.
        datamodule: The data folder.
        split: Split to score.

    Returns:
        Scores in the order of the file on the first process, None on the others ``[candidates]``.
    """
    from newsrec.training.callbacks import ScoreCollector

    collector = next(c for c in trainer.callbacks if isinstance(c, ScoreCollector))
    datamodule.eval_split = split
    trainer.predict(module, datamodule=datamodule, return_predictions=False)
    return collector.scores(trainer, datamodule.data.split(split))


def _other_scores(
    data: MindData, split: str, scorer: str | None, vectors: NDArray[np.float32] | None
) -> dict[str, NDArray[np.float32]]:
    """Return the baselines' scores but for ``scorer``, and for what the folder does not allow."""
    scores = {}
    for name in BASELINES:
        if name == scorer or (name == "cosine" and vectors is None):
            continue
        try:
            scores[name] = score_baseline(name, data, split, news_vectors=vectors)
        except UserError as error:
            log.info("baseline %s left out: %s", name, error)
    return scores


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


def _score_checkpoint(args: "Namespace") -> Scored | None:
    """Rebuild model and data from the checkpoint and score the split, on any number of devices."""
    from lightning import Trainer

    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.callbacks import ScoreCollector
    from newsrec.training.checkpoint import check_same_options, hyper_parameters, read_checkpoint
    from newsrec.training.module import RecommenderModule, trainer_mistakes

    checkpoint = read_checkpoint(args.ckpt_path)
    given: dict[str, dict[str, Any]] = {"data": {}, "model": {}}
    for name in FROM_CHECKPOINT:
        part, option = name.split(".")
        if args[name] is not None:
            given[part][option] = args[name]
    check_same_options(checkpoint, given, args.ckpt_path)

    options = hyper_parameters(checkpoint, "data") | {"root": args.data.root}
    for option in ("eval_batch_size", "num_workers", "on_bad_line"):
        if args[f"data.{option}"] is not None:
            options[option] = args[f"data.{option}"]
    datamodule = MindDataModule(**options)
    datamodule.tokenizer_json = checkpoint["newsrec"]["tokenizer_json"]
    if args.split == LAST_DAY != datamodule.val:
        raise UserError(
            f"--split last_day: {args.ckpt_path} was trained with data.val {datamodule.val}, so it "
            "has seen that day. Train with --data.val last_day, or choose another split."
        )
    datamodule.eval_split = args.split
    datamodule.setup("predict")  # so that a mistake in the data shows before the Trainer's banner
    datamodule.data.split(args.split)
    module = RecommenderModule.from_checkpoint(checkpoint)
    with trainer_mistakes():
        trainer = Trainer(
            **vars(args.trainer),
            precision="bf16-mixed" if args.precision == "bf16" else "32-true",
            logger=False,
            callbacks=[ScoreCollector()],
            use_distributed_sampler=False,
        )
    beside = args.baselines and datamodule.data.split(args.split).labels is not None
    noted: list[Any] = []
    with contextlib.ExitStack() as stack:
        if beside:
            noted = stack.enter_context(note_means(module))
        scores = score_split(trainer, module, datamodule, args.split)
    if scores is None:
        return None
    vectors = None
    if beside:
        if args.precision != "fp32":
            noted.clear()
        device = trainer.strategy.root_device
        vectors = vectors_before_training(module, datamodule, noted, device)
    windows = checkpoint["newsrec"].get("windows", {})
    info = {
        "scorer": "checkpoint",
        "selected_on": checkpoint["newsrec"]["selected_on"],
        "trained_on": {name: windows[name] for name in windows if name == datamodule.train},
        "precision": args.precision,
        "checkpoint_sha256": file_hash(Path(args.ckpt_path)),
    }
    return Scored(args.ckpt_path, datamodule.data, scores, vectors, info)
