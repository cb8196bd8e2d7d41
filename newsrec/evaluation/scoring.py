"""Checkpoints over a split: each rebuilt with the data options it was trained with, and scored."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data.dataset import NewsData, Split
from newsrec.data.splits import LAST_DAY
from newsrec.errors import UserError
from newsrec.evaluation.ensemble import combine, merge_info
from newsrec.evaluation.plm_means import note_means, vectors_before_training
from newsrec.files import file_hash

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.module import RecommenderModule

FROM_CHECKPOINT = {
    "data.fields": list[str],
    "data.max_tokens": int,
    "data.max_history": int,
    "model.plm": str,
}
"""Options that the checkpoint answers; giving another value is an error, not an override."""


class Scored(NamedTuple):
    """A split's scores and where they come from."""

    title: str
    data: NewsData
    scores: NDArray[np.floating]
    """In the order of the file ``[candidates]``."""
    news_vectors: NDArray[np.float32] | None
    """The PLM's mean states, for the baseline ``cosine``, if at hand ``[news, hidden]``."""
    info: dict[str, Any]
    """What ``metrics.json`` says of the scorer."""


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


def score_checkpoints(args: "Namespace") -> Scored | None:
    """Score the split by every checkpoint, on any number of devices, and average over them."""
    from lightning import Trainer

    from newsrec.training.callbacks import ScoreCollector
    from newsrec.training.hardware.precision import TRAINERS
    from newsrec.training.hardware.settle import settle_scoring
    from newsrec.training.mistakes import trainer_mistakes
    from newsrec.training.processes.launch import refuse_lonely, started_by_torchrun

    if len(args.ckpt_path) > 1:  # a mistake in the last shows before the first is scored
        _check_distinct(args)
    by_auto = args.precision == "auto"
    trainer: Any = None
    members: list[Scored] = []
    for path in args.ckpt_path:
        checkpoint, datamodule = _open_checkpoint(args, path)
        datamodule.setup("predict")  # a mistake in the data shows before the Trainer's banner
        _check_same_split(args.split, datamodule.data, members)
        if trainer is None:
            args.precision = settle_scoring(
                args.trainer, args.precision, checkpoint, datamodule.eval_batch_size
            )
            with trainer_mistakes():
                kind: Any = TRAINERS[args.precision]
                trainer = Trainer(
                    **(vars(args.trainer) | started_by_torchrun(args.trainer)),
                    precision=kind,
                    logger=False,
                    callbacks=[ScoreCollector()],
                    use_distributed_sampler=False,
                )
            refuse_lonely(trainer)
        beside = args.baselines and not members
        member = _score_checkpoint(args, path, checkpoint, datamodule, trainer, beside)
        members += [member] if member is not None else []
    if not members:  # not the first process
        return None
    for member in members:
        member.info["precision_by_auto"] = by_auto
    if len(members) == 1:
        return members[0]
    offsets = members[0].data.split(args.split).candidates.offsets
    scores = combine([member.scores for member in members], offsets, args.ensemble)
    return members[0]._replace(
        title=f"{args.ensemble} of {', '.join(args.ckpt_path)}",
        scores=scores,
        info=merge_info([member.info for member in members], args.ensemble),
    )


def _open_checkpoint(args: "Namespace", path: str) -> tuple[dict[str, Any], "MindDataModule"]:
    """Read a checkpoint and build its data module, not set up yet; refuse what contradicts it."""
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.checkpoint.read import (
        check_same_options,
        hyper_parameters,
        read_checkpoint,
    )

    checkpoint = read_checkpoint(path)
    given: dict[str, dict[str, Any]] = {"data": {}, "model": {}}
    for name in FROM_CHECKPOINT:
        part, option = name.split(".")
        if args[name] is not None:
            given[part][option] = args[name]
    check_same_options(checkpoint, given, path)

    options = hyper_parameters(checkpoint, "data") | {"root": args.data.root}
    for option in ("eval_batch_size", "num_workers", "on_bad_line"):
        if args[f"data.{option}"] is not None:
            options[option] = args[f"data.{option}"]
    datamodule = MindDataModule(**options)
    datamodule.tokenizer_json = checkpoint["newsrec"]["tokenizer_json"]
    if args.split == LAST_DAY != datamodule.val:
        raise UserError(
            f"--split last_day: {path} was trained with data.val {datamodule.val}, so it "
            "has seen that day. Train with --data.val last_day, or choose another split."
        )
    datamodule.eval_split = args.split
    return checkpoint, datamodule


def _check_distinct(args: "Namespace") -> None:
    """Refuse an ensemble in which one model votes twice, as a copy or as best and last of a run."""
    from newsrec.training.checkpoint.read import weights_hash

    seen: dict[str, str] = {}
    for path in args.ckpt_path:
        checkpoint, _ = _open_checkpoint(args, path)
        weights = weights_hash(checkpoint["state_dict"])
        if weights in seen:
            raise UserError(
                f"--ckpt_path: {path} has the weights of {seen[weights]}, and would count twice. "
                "Give each model once."
            )
        seen[weights] = path


def _check_same_split(split: str, data: NewsData, members: list[Scored]) -> None:
    """Refuse checkpoints whose options make different splits of one name."""
    part = data.split(split)
    if members and part.fingerprint != members[0].data.split(split).fingerprint:
        raise UserError(
            f"--split {split} is not the same for all checkpoints, which were trained with other "
            "data.train. Choose a split of the data folder."
        )


def _check_numbers(path: str, split: Split, scores: NDArray[np.float32]) -> None:
    """Refuse a model whose scores are no numbers, and name the first impression that has one."""
    nan = np.flatnonzero(np.isnan(scores))
    if len(nan):
        row = np.searchsorted(split.candidates.offsets, nan[0], side="right") - 1
        raise UserError(
            f"{path}: {len(nan):,} of {len(scores):,} scores are NaN, the first in impression "
            f"{split.impression_id[row]}, and a NaN has no rank. Give an earlier checkpoint; if "
            "this was --precision bf16, try fp32."
        )


def _score_checkpoint(
    args: "Namespace",
    path: str,
    checkpoint: dict[str, Any],
    datamodule: "MindDataModule",
    trainer: Any,
    baselines: bool,
) -> Scored | None:
    """Rebuild the model and score the split; None on all processes but the first."""
    from newsrec.training.module import RecommenderModule

    module = RecommenderModule.from_checkpoint(checkpoint, path)
    beside = baselines and datamodule.data.split(args.split).labels is not None
    noted: list[Any] = []
    with contextlib.ExitStack() as stack:
        if beside:
            noted = stack.enter_context(note_means(module))
        scores = score_split(trainer, module, datamodule, args.split)
    vectors = None
    if beside:  # all processes share this work
        if args.precision != "fp32":
            noted.clear()
        place = (trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
        vectors = vectors_before_training(module, datamodule, noted, *place)
    if scores is None:
        return None
    _check_numbers(path, datamodule.data.split(args.split), scores)
    info = provenance(checkpoint, Path(path), datamodule, args.precision)
    return Scored(path, datamodule.data, scores, vectors, info)


def provenance(
    checkpoint: dict[str, Any], path: Path, datamodule: "MindDataModule", precision: str
) -> dict[str, Any]:
    """Return what ``metrics.json`` says of where a model's scores come from.

    Args:
        checkpoint: Its content.
        path: Its file.
        datamodule: The data folder that was scored.
        precision: fp32 or bf16, in which it was scored.
    """
    own = checkpoint["newsrec"]
    windows, seen = own.get("windows", {}), own.get("data_fingerprint", {})
    splits = datamodule.data.splits
    return {
        "scorer": "checkpoint",
        "selected_on": own["selected_on"],
        "trained_on": {name: windows[name] for name in windows if name == datamodule.train},
        "other_data": [
            name for name in seen if name in splits and splits[name].fingerprint != seen[name]
        ],
        "precision": precision,
        "precision_by_auto": False,
        "checkpoint_sha256": file_hash(path),
    }
