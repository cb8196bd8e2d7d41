"""Score a split by checkpoints or a baseline; data options come from the checkpoint."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data.dataset import NewsData, Split, open_mind
from newsrec.data.splits import LAST_DAY, choose_splits
from newsrec.errors import UserError
from newsrec.evaluation.baselines import clicks_of, score_baseline
from newsrec.evaluation.ensemble import combine, merge_info
from newsrec.evaluation.explained import Explain, explainer
from newsrec.evaluation.fitted import FITTED, combine_fitted, learns_on
from newsrec.evaluation.half_life import HalfLife
from newsrec.evaluation.plm_means import plm_vectors, record_means, vectors_before_training
from newsrec.evaluation.repeats import Repeats

if TYPE_CHECKING:
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.module import RecommenderModule
    from newsrec.training.trained_run import TrainedRun

QUIET = {"enable_checkpointing": False, "enable_model_summary": False}
"""Options of a Trainer that only scores."""


class Scored(NamedTuple):
    """The scores of a split and their origin."""

    title: str
    data: NewsData
    scores: NDArray[np.floating]
    """Scores in the order of the file ``[candidates]``."""
    news_vectors: NDArray[np.float32] | None
    """Mean PLM states for the baseline ``cosine``, None if not available ``[news, hidden]``."""
    info: dict[str, Any]
    """Fields of ``metrics.json`` that describe the scorer."""
    repeated: NDArray[np.bool_] | None = None
    """Whether each candidate repeats a click; None if nobody asked ``[candidates]``."""
    explain: Explain | None = None
    """Divides a score among the clicks; None if it is not the score of one model."""
    model_vectors: NDArray[np.float32] | None = None
    """News vectors of the model; None if the scores are not those of one model ``[news, dim]``."""


def score_split(
    trainer: Any, module: "RecommenderModule", datamodule: "MindDataModule", split: str
) -> NDArray[np.float32] | None:
    """Score every candidate of a split on all the processes of a Trainer with a ``ScoreCollector``.

    Returns scores in file order on the first process, None on the others ``[candidates]``.
    """
    from newsrec.training.callbacks import ScoreCollector
    from newsrec.training.processes.together import fail_together

    collector = next(c for c in trainer.callbacks if isinstance(c, ScoreCollector))
    datamodule.predict_on(split)
    with fail_together(trainer):
        trainer.predict(module, datamodule=datamodule, return_predictions=False)
        return collector.scores(trainer, datamodule.data.split(split))


def score_checkpoints(
    ckpt_paths: Sequence[str | Path],
    root: str | Path,
    split: str,
    *,
    trainer: Mapping[str, Any] | None = None,
    ensemble: str | None = None,
    precision: str = "fp32",
    with_means: bool = True,
    expected: Mapping[str, dict[str, Any]] | None = None,
    repeats: Repeats | None = None,
    half_life: HalfLife | None = None,
    **data_options: Any,
) -> Scored | None:
    """Score a split by every checkpoint, on any number of devices; average as ``ensemble`` says.

    ``ensemble`` is one of ``ENSEMBLES``, or ``FITTED``. Each checkpoint must have the values of
    ``model`` and ``data`` in ``expected``; ``data_options`` do not affect scores. ``with_means``
    asks for news vectors for the baseline ``cosine``; ``repeats`` lowers the scores of candidates
    that repeat a click, with several checkpoints those that repeat one for at least half of the
    checkpoints. ``half_life`` lowers the scores of older candidates, before that. Returns the
    scores on the first process, None on the others.
    """
    from newsrec.training.hardware.settle import settle_scoring, trainer_defaults
    from newsrec.training.hardware.threads import forget_threads
    from newsrec.training.trained_run import TrainedRun

    def open_run(path: str | Path) -> TrainedRun:
        return TrainedRun.open(path, root, split, expected, **data_options)

    options = trainer_defaults(**(QUIET | dict(trainer or {})))
    if len(ckpt_paths) > 1:  # show a mistake in the last one before scoring the first
        _check_distinct(open_run(path) for path in ckpt_paths)
    by_auto = precision == "auto"
    built: Any = None
    members: list[Scored] = []
    lessons: list[NDArray[np.float32]] = []
    try:
        for number, path in enumerate(ckpt_paths):
            run = open_run(path)
            data = run.data  # show a mistake in the data before the Trainer's banner
            _check_same_split(split, data.data, members)
            if half_life is not None:
                half_life.check(data.data, split)
            source = learns_on(data.data, split) if ensemble == FITTED else split
            if ensemble == FITTED:
                _check_unseen(run, source)
            if built is None:
                precision = settle_scoring(options, precision, run.checkpoint, data.eval_batch_size)
                built = _build_trainer(options, precision)
            beside = with_means and number == 0  # on all processes, which share the work
            member = _score_run(run, split, built, precision, by_auto, beside, repeats)
            members += [member] if member is not None else []
            if source != split:
                lesson = score_split(built, run.module, data, source)
                if lesson is not None:
                    _check_numbers(str(run.path), data.data.split(source), lesson)
                    lessons.append(lesson)
    finally:
        forget_threads()
    if not members:  # on all processes but the first
        return None
    found = members[0]
    if len(members) > 1:
        assert ensemble is not None
        found = _combined(members, lessons, split, ensemble)
    if half_life is not None:
        scores, about = half_life.apply(found.data, split, found.scores)
        found = found._replace(scores=scores, info=found.info | {"half_life": about})
    return found if repeats is None else _lowered(found, split, repeats)


def _build_trainer(options: dict[str, Any], precision: str) -> Any:
    """Return a Trainer for ``score_split``, whose processes find each other or are refused."""
    from lightning import Trainer

    from newsrec.training.callbacks import ScoreCollector
    from newsrec.training.hardware.precision import TRAINERS
    from newsrec.training.mistakes import trainer_mistakes
    from newsrec.training.processes.launch import refuse_unconnected, started_by_torchrun
    from newsrec.training.processes.waiting import wait_in_trainer

    always = {"logger": False, "use_distributed_sampler": False, "callbacks": [ScoreCollector()]}
    options = options | always | {"precision": TRAINERS[precision]}
    with trainer_mistakes():
        trainer = Trainer(**(options | started_by_torchrun(options)))
    refuse_unconnected(trainer)
    wait_in_trainer(trainer)
    return trainer


def _combined(
    members: list[Scored], lessons: list[NDArray[np.float32]], split: str, ensemble: str
) -> Scored:
    """Combine the scores of several models; ``lessons`` are those that weights are learned from.

    Without lessons the weights are learned from the scores themselves, by folds of the users.
    """
    first, all_scores = members[0], [member.scores for member in members]
    names = [member.title for member in members]
    info = merge_info([member.info for member in members], ensemble)
    if ensemble == FITTED:
        scores, info[FITTED] = combine_fitted(
            first.data, split, names, all_scores, lessons or all_scores
        )
    else:
        scores = combine(all_scores, first.data.split(split).candidates.offsets, ensemble)
    title = f"{ensemble} of {', '.join(names)}"
    masks = [member.repeated for member in members if member.repeated is not None]
    repeated = np.mean(masks, axis=0) >= 0.5 if masks else None
    return first._replace(
        title=title, scores=scores, info=info, repeated=repeated, explain=None, model_vectors=None
    )


def _lowered(scored: Scored, split: str, repeats: Repeats) -> Scored:
    """Return the scores, lowered for candidates that repeat a click."""
    assert scored.repeated is not None
    offsets = scored.data.split(split).candidates.offsets
    scores = repeats.apply(scored.scores, scored.repeated, offsets)
    found = {"repeats": repeats.described(int(scored.repeated.sum()))}
    return scored._replace(scores=scores, info=scored.info | found)


def score_by_baseline(
    name: str,
    root: str | Path,
    split: str,
    plm: str | None = None,
    device: Any = "cpu",
    val_days: int = 1,
    **data_options: Any,
) -> Scored:
    """Score a split by a baseline.

    ``cosine`` runs ``plm``, the default PLM if None, on ``device``. With the other baselines a
    ``plm`` is run for the metrics of news vectors alone; without one they use only ``on_bad_line``
    of the data's options. ``val_days`` are the days of the split ``last_day``.
    """
    data = open_mind(root, data_options.get("on_bad_line", "error"))
    if split == LAST_DAY:
        data = choose_splits(data, val=LAST_DAY, days=val_days)
    vectors = None
    if name == "cosine" or plm is not None:
        from newsrec.data.datamodule import MindDataModule

        if plm is not None:
            data_options["plm"] = plm
        datamodule = MindDataModule(root=str(root), **data_options)
        datamodule.setup("predict")
        vectors = plm_vectors(datamodule, device)
    train = data.splits.get(data.train)
    info = {
        "scorer": name,
        "selected_on": None,
        "trained_on": {} if train is None else {train.name: train.window},
        "precision": None,
        "clicks_of": {s.name: s.window for s in clicks_of(name, data)},
    }
    scores = score_baseline(name, data, split, news_vectors=vectors)
    return Scored(f"baseline {name}", data, scores, vectors, info)


def _check_distinct(runs: Iterable["TrainedRun"]) -> None:
    """Refuse the same weights given twice, as a copy or as best and last of one run."""
    from newsrec.training.checkpoint.read import weights_hash

    seen: dict[str, Path] = {}
    for run in runs:
        weights = weights_hash(run.checkpoint["state_dict"])
        if weights in seen:
            raise UserError(
                f"--ckpt_path: {run.path} has the same weights as {seen[weights]}, which would "
                "count twice. Give each model once."
            )
        seen[weights] = run.path


def _check_same_split(split: str, data: NewsData, members: list[Scored]) -> None:
    """Refuse checkpoints whose data options give the split's name to different impressions."""
    part = data.split(split)
    if members and part.fingerprint != members[0].data.split(split).fingerprint:
        raise UserError(
            f"--split {split} is not the same for all checkpoints, which were trained with other "
            "data.train. Choose a split of the data folder."
        )


def _check_unseen(run: "TrainedRun", source: str) -> None:
    """Refuse a model that was trained on the split that weights are learned on."""
    if source in run.data.train.split("+"):
        raise UserError(
            f"--ensemble {FITTED} learns its weights on {source}, and {run.path} was trained on it "
            f"(data.train {run.data.train}), so its scores are better there than elsewhere. Choose "
            "--ensemble mean_score, or leave that checkpoint out."
        )


def _check_numbers(path: str, split: Split, scores: NDArray[np.float32]) -> None:
    """Refuse scores that are NaN; the error names the first impression that has one."""
    nan = np.flatnonzero(np.isnan(scores))
    if len(nan):
        row = np.searchsorted(split.candidates.offsets, nan[0], side="right") - 1
        raise UserError(
            f"{path}: {len(nan):,} of {len(scores):,} scores are NaN, the first in impression "
            f"{split.impression_id[row]}, and a NaN has no rank. Give an earlier checkpoint; if "
            "this was --precision bf16, try fp32."
        )


def _score_run(
    run: "TrainedRun",
    split: str,
    trainer: Any,
    precision: str,
    by_auto: bool,
    with_means: bool,
    repeats: Repeats | None,
) -> Scored | None:
    """Score the split by a trained model; None on all processes but the first."""
    module, data = run.module, run.data
    beside = with_means and data.data.split(split).labels is not None
    noted: list[Any] = []
    with contextlib.ExitStack() as stack:
        if beside:
            noted = stack.enter_context(record_means(module))
        scores = score_split(trainer, module, data, split)
    vectors = None
    if beside:  # all processes share this work
        if precision != "fp32":
            noted.clear()
        place = (trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
        vectors = vectors_before_training(module, data, noted, *place)
    if scores is None:
        return None
    _check_numbers(str(run.path), data.data.split(split), scores)
    assert module.news_vectors is not None
    news = module.news_vectors.float().cpu().numpy()
    repeated = None if repeats is None else repeats.find(data.data.split(split), news)
    info = run.provenance(precision, by_auto)
    explain = explainer(module, data.max_history)
    return Scored(str(run.path), data.data, scores, vectors, info, repeated, explain, news)
