"""The command ``evaluate``: MIND's metrics of checkpoints or a baseline on a split."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from newsrec.commands.common import add_data_root, add_on_bad_line, add_output, add_split
from newsrec.console import is_first_process
from newsrec.data.splits import LAST_DAY
from newsrec.errors import UserError
from newsrec.evaluation.baselines import BASELINES, describe_baselines
from newsrec.evaluation.beyond import LONGEST
from newsrec.evaluation.ensemble import ENSEMBLES
from newsrec.evaluation.fitted import ABOUT, FITTED
from newsrec.evaluation.half_life import HalfLife
from newsrec.evaluation.repeats import Repeats
from newsrec.evaluation.rerank import Rerank, check_vectors
from newsrec.evaluation.scoring import QUIET, Scored, score_by_baseline, score_checkpoints
from newsrec.evaluation.voices import read_voices
from newsrec.report.evaluate import SCORES_FILE, evaluate
from newsrec.report.terminal import print_results

FROM_CHECKPOINT = {
    "data.fields": list[str],
    "data.max_tokens": int,
    "data.max_history": int,
    "model.plm": str,
}
"""Options whose values come from the checkpoint; giving another value is an error."""
AVERAGES = ENSEMBLES | {FITTED: ABOUT}
"""Choices of ``--ensemble``."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's options."""
    from lightning import Trainer

    from newsrec.training.lightning_internals import whole_numbers_first

    whole_numbers_first()
    add = parser.add_argument
    use = "checkpoint that fit wrote: runs/NAME/.../best.ckpt; several make an ensemble"
    add("--ckpt_path", nargs="+", help=use)
    averages = "; ".join(f"{name}: {text}" for name, text in AVERAGES.items())
    add("--ensemble", choices=tuple(AVERAGES), help=f"average over checkpoints. {averages}")
    described = describe_baselines().items()
    baselines = "; ".join(f"{name}: {text.rstrip('.')}" for name, text in described)
    add("--scorer", choices=BASELINES, help=f"a baseline instead of a checkpoint. {baselines}")
    add_data_root(parser)
    add("--data.eval_batch_size", type=int, help="impressions per step")
    add("--data.num_workers", type=int, help="processes that prepare batches")
    add_on_bad_line(parser, default=None)
    use = (
        "only for a baseline whose PLM is run: cosine, and any with --model.plm, which measures "
        "the diversity of news vectors and so on; a checkpoint has its own value"
    )
    for name, kind in FROM_CHECKPOINT.items():
        add(f"--{name}", type=kind | None, help=use)
    use = "days of --split last_day, for a baseline; a checkpoint brings its own"
    add("--data.val_days", type=int | None, help=use)
    use = "split to score; last_day is train's last day, which the checkpoint must not have seen"
    add_split(parser, use, LAST_DAY)
    add_output(parser)
    use = "compare with the baselines if there are labels; cosine runs the PLM over all news"
    add("--baselines", type=bool, default=True, help=use)
    use = "measure the first news of each ranking beyond accuracy: diversity, novelty and so on"
    add("--beyond", type=bool, default=True, help=use)
    use = (
        "file of the named entities that representation and alternative voices count (.csv, .json "
        "or .parquet with the column name, and group, minority or both); without it, "
        "representation counts persons"
    )
    add("--voices", type=str, metavar="FILE", help=use)
    use = f"also write every candidate's raw score, into {SCORES_FILE}"
    add("--scores", type=bool, default=False, help=use)
    use = (
        "lower the score of a candidate whose vector has at least this cosine, up to 1, with the "
        "vector of a news item in the history (a repeat)"
    )
    add("--repeat_threshold", type=float, help=use)
    use = "what is subtracted from the score of a repeat; if left out, repeats are ranked last"
    add("--repeat_penalty", type=float, help=use)
    use = (
        "half-life in hours: a candidate's score is lowered by ln 2 for each half-life since it "
        "was first shown; auto measures some half-lives on this split, and takes the best"
    )
    add("--half_life", type=str, metavar="HOURS|auto", help=use)
    _add_rerank(add)
    use = (
        "precision of encoding news and users; auto takes bf16 if it is measured to be 1.3 times "
        "as fast; recorded in metrics.json"
    )
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help=use)
    parser.add_class_arguments(
        Trainer,
        "trainer",
        skip={"precision", "logger", "callbacks", "use_distributed_sampler", "default_root_dir"},
    )
    parser.set_defaults({f"trainer.{name}": value for name, value in QUIET.items()})


def _add_rerank(add: Callable[..., Any]) -> None:
    """Add the options that re-rank the first news, named as those of ``recommend``."""
    first = f"re-rank the first {LONGEST} news of each impression: "
    use = "at most this many news items of one category"
    add("--per_category", type=int, metavar="N", help=first + use)
    use = "of two news items with at least this cosine, up to 1, keep only the better one"
    add("--near_duplicates", type=float, metavar="COSINE", help=first + use)
    use = "how much each must differ from those above it, from 0 to 1"
    add("--diversity", type=float, metavar="SHARE", help=first + use)
    use = "how much the categories must match those of the user's history, from 0 to 1"
    add("--calibration", type=float, metavar="SHARE", help=first + use)
    use = (
        "measure on this split what some values of --diversity, --calibration and --half_life cost "
        "in accuracy and gain beyond it"
    )
    add("--trade_off", type=bool, default=False, help=use)


def run(args: Namespace) -> None:
    """Score the split, print the metrics, and write them and the leaderboard's file."""
    from newsrec.training.processes.together import fail_together_from_the_start

    with fail_together_from_the_start():
        _run(args)


def _run(args: Namespace) -> None:
    from newsrec.training.mistakes import check_scoring

    if (args.ckpt_path is None) == (args.scorer is None):
        raise UserError("Give either --ckpt_path CKPT or --scorer NAME.")
    paths = args.ckpt_path or []
    _check_ensemble(paths, args.ensemble)
    if args["data.val_days"] is not None and args.split != LAST_DAY:
        raise UserError(
            f"--data.val_days {args['data.val_days']} is for --split {LAST_DAY}, and --split is "
            f"{args.split}. Leave it out."
        )
    if args.scorer is not None and Repeats.of(args.repeat_threshold, args.repeat_penalty):
        raise UserError(
            f"--repeat_threshold compares the news vectors of a model, and the baseline "
            f"{args.scorer} has none. Leave it out, or give --ckpt_path."
        )
    rerank = Rerank.of(*(args[name] for name in Rerank._fields))
    check_vectors(rerank, args.scorer, len(paths))
    half_life = HalfLife.of(args.half_life)
    if args.scorer is not None and half_life:
        raise UserError(
            f"--half_life lowers scores that are logits, and the scores of the baseline "
            f"{args.scorer} are not logits. Leave it out, or give --ckpt_path."
        )
    voices = None if args.voices is None else read_voices(args.voices)
    check_scoring(args.trainer)
    if args.scorer is not None and not is_first_process():
        return  # a baseline needs only one of torchrun's processes
    place = {"root": args.data.root, "split": args.split}
    found = evaluate(
        partial(_score, args, place),
        **place,
        output=args.output,
        ckpt_path=paths[0] if len(paths) == 1 else None,
        leave_out=args.scorer,
        baselines=args.baselines,
        raw_scores=args.scores,
        beyond=args.beyond,
        voices=voices,
        rerank=rerank,
        measure_trade_off=args.trade_off,
    )
    if found is not None:
        title, metrics, ceiling, oracles, written = found
        print_results(title, metrics, ceiling, oracles, Path(args.output), written)


def _score(args: Namespace, place: dict[str, Any]) -> Scored | None:

    def given(part: str, *names: str) -> dict[str, Any]:
        values = {name: args[f"{part}.{name}"] for name in names}
        return {name: value for name, value in values.items() if value is not None}

    if args.scorer is not None:
        options = given("data", "fields", "max_tokens", "on_bad_line", "val_days")
        from newsrec.training.hardware.precision import trainer_device

        device = trainer_device(args.trainer) or "cpu"
        return score_by_baseline(args.scorer, plm=args.model.plm, device=device, **place, **options)
    return score_checkpoints(
        args.ckpt_path,
        **place,
        trainer=vars(args.trainer),
        ensemble=args.ensemble,
        precision=args.precision,
        with_means=args.baselines,
        repeats=Repeats.of(args.repeat_threshold, args.repeat_penalty),
        half_life=HalfLife.of(args.half_life),
        expected={
            "data": given("data", "fields", "max_tokens", "max_history", "val_days"),
            "model": given("model", "plm"),
        },
        **given("data", "eval_batch_size", "num_workers", "on_bad_line"),
    )


def _check_ensemble(paths: list[str], ensemble: str | None) -> None:
    if len(paths) > 1 and ensemble is None:
        raise UserError(
            f"--ckpt_path has {len(paths)} checkpoints. Choose how to average their scores by "
            f"--ensemble {' or --ensemble '.join(AVERAGES)}, or give one."
        )
    if len(paths) < 2 and ensemble is not None:
        given = "one checkpoint" if paths else "a baseline"
        raise UserError(
            f"--ensemble {ensemble} averages over several checkpoints, but {given} is given. Leave "
            "it out, or give more: --ckpt_path A B."
        )
