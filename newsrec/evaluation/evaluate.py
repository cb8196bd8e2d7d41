"""The command ``evaluate``: a checkpoint or a baseline over a split, in MIND's own metrics."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsrec.data.cache import file_hash, publish, require_empty
from newsrec.data.mind import MindData, open_mind
from newsrec.data.source import SPLITS
from newsrec.data.splits import LAST_DAY, choose_splits
from newsrec.errors import UserError
from newsrec.evaluation.baselines import BASELINES, describe_baselines, score_baseline
from newsrec.evaluation.intervals import mean_interval
from newsrec.evaluation.submission import write_predictions
from newsrec.metrics import METRICS, impression_metrics, ranks, summarize

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from newsrec.data.datamodule import MindDataModule
    from newsrec.data.states import TokenStates
    from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of ``metrics.json``."""

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


def run(args: "Namespace") -> None:
    """Score the split, print the metrics and write them with the leaderboard's file."""
    if (args.ckpt_path is None) == (args.scorer is None):
        raise UserError("Give either --ckpt_path CKPT or --scorer NAME.")
    output = Path(args.output)
    require_empty(output)
    if args.scorer is not None:
        data = open_mind(args.data.root, args.data.on_bad_line or "error")
        if args.split == LAST_DAY:
            data = choose_splits(data, val=LAST_DAY)
        scores = _baseline_scores(args, data)
        train = data.splits.get(data.train)
        info: dict[str, Any] = {
            "scorer": args.scorer,
            "selected_on": None,
            "trained_on": {} if train is None else {train.name: train.window},
            "precision": None,
        }
        title = f"baseline {args.scorer}"
    else:
        scored = _checkpoint_scores(args)
        if scored is None:  # not the first process
            return
        data, scores, info = scored
        title = args.ckpt_path
    metrics = evaluate_scores(data, args.split, scores) | info

    def build(folder: Path) -> None:
        split = data.split(args.split)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        rank = ranks(scores, split.candidates.offsets)
        write_predictions(
            folder / "prediction.zip", split.impression_id, rank, split.candidates.offsets
        )

    publish(output, build)
    _print(title, metrics, output)


def evaluate_scores(data: MindData, split: str, scores: NDArray[np.float32]) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a split's scores.

    Args:
        data: The data folder.
        split: Split that was scored.
        scores: In the order of its file ``[candidates]``.

    Returns:
        Counts and fingerprint; where the split has labels also the four metrics and their 95 %
        intervals, clustered by user.
    """
    part = data.split(split)
    result: dict[str, Any] = {
        "format": FORMAT,
        "split": split,
        "window": part.window,
        "impressions": len(part.history),
        "unknown_candidates": part.counts["unknown_candidates"],
        "skipped_lines": part.counts.get("skipped_lines", 0),
        "data_fingerprint": part.fingerprint,
    }
    if part.labels is None:
        return result
    metrics = impression_metrics(scores, part.labels, part.candidates.offsets)
    values, users = metrics.values[:, metrics.valid], part.user[metrics.valid]
    result |= summarize(metrics)
    if result["evaluated"]:
        bounds = mean_interval(values, users).tolist()
        result["intervals"] = dict(zip(METRICS, bounds, strict=True))
    return result


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


def plm_vectors(
    datamodule: "MindDataModule", states: "TokenStates | None" = None
) -> NDArray[np.float32]:
    """Return the mean PLM state of every story, for the baseline ``cosine`` ``[news, hidden]``.

    Args:
        datamodule: The data folder.
        states: The PLM's last states, if they are known.
    """
    from newsrec.model.tuning import CutPlm
    from newsrec.plm import load_plm
    from newsrec.training.catalogue import mean_states

    cut = CutPlm(load_plm(datamodule.plm).eval(), tune_layers=0)
    return mean_states(cut, datamodule.catalogue, states).numpy()


def _baseline_scores(args: "Namespace", data: MindData) -> NDArray[np.float32]:
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
    return score_baseline(args.scorer, data, args.split, news_vectors=vectors)


def _checkpoint_scores(
    args: "Namespace",
) -> tuple[MindData, NDArray[np.float32], dict[str, Any]] | None:
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
    scores = score_split(trainer, module, datamodule, args.split)
    if scores is None:
        return None
    windows = checkpoint["newsrec"].get("windows", {})
    info = {
        "scorer": "checkpoint",
        "selected_on": checkpoint["newsrec"]["selected_on"],
        "trained_on": {name: windows[name] for name in windows if name == datamodule.train},
        "precision": args.precision,
        "checkpoint_sha256": file_hash(Path(args.ckpt_path)),
    }
    return datamodule.data, scores, info


def _print(title: str, metrics: dict[str, Any], output: Path) -> None:
    from rich.console import Console

    from newsrec.evaluation.report import metrics_table

    split = metrics["split"]
    for name, window in metrics["trained_on"].items():
        print(f"Trained on {name}, {window}.")
        if split in name.split("+"):
            print(f"{split} is among what was trained on: this says nothing of new impressions.")
    if "auc" in metrics:
        Console().print(metrics_table(f"{split} split, {metrics['window']}, {title}", metrics))
        if metrics["selected_on"] == split:
            print(f"{split} chose this checkpoint: expect less on another split.")
        print(
            f"{metrics['impressions']:,} impressions, {metrics['evaluated']:,} evaluated "
            f"({metrics['single_class']:,} without a click or without a skip left out); "
            f"{metrics['tied']:,} with tied scores; {metrics['unknown_candidates']:,} candidates "
            "not in news.tsv.\nIntervals cover the choice of users, not the training seed."
        )
    else:
        print(
            f"{split}, {metrics['window']}, has no labels: {metrics['impressions']:,} impressions "
            "ranked, "
            f"{metrics['unknown_candidates']:,} candidates not in news.tsv."
        )
    if metrics["skipped_lines"]:
        lines = "line" if metrics["skipped_lines"] == 1 else "lines"
        were = "was" if metrics["skipped_lines"] == 1 else "were"
        print(
            f"{metrics['skipped_lines']:,} {lines} of behaviors.tsv {were} skipped and not ranked."
        )
    print(
        f"Written: {output / 'metrics.json'} and {output / 'prediction.zip'} (the leaderboard's)."
    )
