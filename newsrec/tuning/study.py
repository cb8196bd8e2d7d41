"""Trains with one set of options after another, and finds the best set."""

import gc
import json
import logging
import math
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback

from newsrec.errors import MissingPackageError, UserError
from newsrec.files import require_empty, require_writable
from newsrec.training.processes.run_lock import HOLDER, LOCK, RunLock
from newsrec.tuning.space import Space, check_space, distributions, drawn, inside
from newsrec.tuning.trial import (
    TRIALS,
    AucReport,
    Trial,
    Tuning,
    best_of,
    describe,
    trial_folder,
)

log = logging.getLogger(__name__)

JOURNAL = "study.journal"
PRUNERS = ("median", "hyperband", "none")
FAILURES = 3
"""The study ends if this many trials fail before one succeeds."""
CALLED = {"space": "search space", "about": "value of an option of fit"}
ENOUGH = 10
"""The importance of options is computed from this many complete trials on."""

Train = Callable[[dict[str, Any], Path, list[Callback]], Any]
"""Trains with options, in a run folder that does not exist yet, with further callbacks."""


def tune(
    train: Train,
    space: Mapping[str, Any],
    output: str | Path,
    *,
    trials: int = 20,
    seed: int = 0,
    pruner: str = "median",
    keep: str = "best",
    first: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Tuning:
    """Search for the options with the best ``val/auc``, one training after the other.

    A search that was stopped or killed goes on when ``tune`` is called again with the same
    arguments. The draws depend on the seed and the earlier trials, not on where the search stopped.

    Args:
        train: Called with the drawn options by name, a run folder and callbacks; it trains, for
            example by ``newsrec.fit``, with all of these callbacks.
        space: By name of the option: ``{low, high, log, step}`` or a list of choices.
        output: Folder for the study; a trial has the run folder ``trials/NUMBER`` in it.
        trials: Number of trials in all; those that were killed are replaced and do not count.
        seed: Seed of the draws.
        pruner: What ends a trial early: ``median``, if it is worse than the median of the complete
            trials after the same number of validations; ``hyperband``, Optuna's pruner of that
            name; or ``none``.
        keep: ``best`` deletes the checkpoints of all trials but the best; ``all`` keeps them.
        first: Options of the first trial; those outside the space are ignored.
        about: What else the trials have in common; a study goes on only with an equal value.

    Returns:
        All trials, and the importance of the options.

    Raises:
        UserError: If optuna is missing, an argument cannot be used, or all trials fail.
    """
    _check(trials, pruner, keep)
    optuna = _optuna()
    wanted = check_space(space, "space")
    output = Path(output)
    if not (output / JOURNAL).is_file():
        require_empty(output)
    require_writable(output)
    lock = RunLock(output)
    lock.take()
    try:
        study = _study(optuna, output, pruner)
        _check_same(
            study, output, {"space": wanted, "seed": seed, "pruner": pruner, "about": about}
        )
        _fail_stopped(study)
        if not study.trials and first:
            study.enqueue_trial(inside(wanted, first))
        found = _read(study, wanted)
        if found:
            log.info("%s: %d of %d trials are done", output, len(found), trials)
        while len(found) < trials:
            found.append(_run(study, train, wanted, output, seed, trials, found))
            if keep == "best":
                _delete_checkpoints(output, found)
        if not any(trial.state == "complete" for trial in found):
            raise UserError(f"No trial was successful. The last one: {found[-1].error}")
        return Tuning(output, found, _importance(optuna, study, found))
    except UserError:
        if not any((output / TRIALS).glob("*/metrics.csv")):  # nothing was trained
            lock.discard([JOURNAL, TRIALS, LOCK, HOLDER])
        raise
    finally:
        lock.release()


def _check(trials: int, pruner: str, keep: str) -> None:
    if trials < 1:
        raise UserError(f"--trials is {trials}; it must be at least 1.")
    for name, value, allowed in (("pruner", pruner, PRUNERS), ("keep", keep, ("best", "all"))):
        if value not in allowed:
            raise UserError(f"--{name} is {value!r}. Choose one of {', '.join(allowed)}.")


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingPackageError.of("tune", "optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, output: Path, pruner: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5),
        "hyperband": optuna.pruners.HyperbandPruner(),
        "none": optuna.pruners.NopPruner(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(output / JOURNAL))),
            study_name="newsrec",
            direction="maximize",
            pruner=pruners[pruner],
            load_if_exists=True,
        )


def _check_same(study: Any, output: Path, asked: dict[str, Any]) -> None:
    """Store the study's settings; refuse to go on with other settings."""
    asked = json.loads(json.dumps(asked, default=str))
    kept = study.user_attrs.get("asked")
    if kept is None:
        study.set_user_attr("asked", asked)
        return
    for name, value in asked.items():
        old = kept.get(name)
        if old != value:
            both = isinstance(old, dict) and isinstance(value, dict)
            keys = [key for key in old | value if old.get(key) != value.get(key)] if both else []
            raise UserError(
                f"{output} has a study with another {CALLED.get(name, name)}"
                f"{f' ({keys[0]})' if keys else ''}. Give the same to go on with it, or choose "
                "another --output."
            )


def _fail_stopped(study: Any) -> None:
    """Mark trials whose process was killed as failed; new trials replace them."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        log.info("trial %d was stopped, and is replaced", trial.number)
        study.tell(trial.number, state=TrialState.FAIL)


def _read(study: Any, space: Space) -> list[Trial]:
    """Return the trials that ended by themselves."""
    return [
        Trial(number=t.number, options=drawn(space, t.params), **t.user_attrs["result"])
        for t in study.trials
        if t.state.is_finished() and "result" in t.user_attrs
    ]


def _run(
    study: Any,
    train: Train,
    space: Space,
    output: Path,
    seed: int,
    trials: int,
    before: list[Trial],
) -> Trial:
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    # Each trial has its own sampler, so a stopped study draws as one that was never stopped.
    number = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)))
    drawing = np.random.SeedSequence([seed, number]).generate_state(1)
    study.sampler = TPESampler(seed=int(drawing[0]))
    trial = study.ask(distributions(space))
    options, folder = drawn(space, trial.params), trial_folder(output, trial.number)
    folder.parent.mkdir(exist_ok=True)
    report, began, error = AucReport(trial), time.monotonic(), ""
    try:
        with _tidy():
            train(options, folder, [report])
        if not report.values:
            raise UserError(
                "A trial ended without val/auc: before its first validation, or its split has no "
                "labels."
            )
        if not all(map(math.isfinite, report.values)):
            raise UserError("val/auc is not a number.")
    except UserError as wrong:
        error = str(wrong)
    except BaseException:  # stopped, or a bug: the trial is replaced when the study goes on
        study.tell(trial, state=TrialState.FAIL)
        raise
    state = "failed" if error else "pruned" if report.pruned else "complete"
    auc = math.nan if error else max(report.values)
    seconds = round(time.monotonic() - began, 1)
    result = Trial(trial.number, state, auc, len(report.values), seconds, options, error)
    kept = result._asdict()
    trial.set_user_attr("result", {n: kept[n] for n in kept if n not in ("number", "options")})
    if error:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, *((auc,) if state == "complete" else (None, TrialState.PRUNED)))
    after = [*before, result]
    _say(result, after, trials)
    if len(after) >= FAILURES and all(one.state == "failed" for one in after):
        raise UserError(f"The first {len(after)} trials failed. The last one: {error}")
    return result


def _say(trial: Trial, after: list[Trial], trials: int) -> None:
    place, options = f"trial {trial.number} ({len(after)} of {trials})", describe(trial.options)
    if trial.error:
        log.info("%s failed: %s (%s)", place, trial.error, options)
        return
    best = best_of(after)
    against = "" if best is None else f" (best so far {best.auc:.4f})"
    against = " (the best so far)" if trial is best else against
    number = f"{trial.validations} validation{'' if trial.validations == 1 else 's'}"
    said = "%s: val/auc %.4f%s, %s after %s, %.0f s: %s"
    log.info(said, place, trial.auc, against, trial.state, number, trial.seconds, options)


@contextmanager
def _tidy() -> Iterator[None]:
    """Free a trial's memory and restore the signal handlers before the next trial."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
        wandb: Any = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish()  # else the next trial would go on in the same run
        gc.collect()


def _delete_checkpoints(output: Path, found: list[Trial]) -> None:
    best = best_of(found)
    for folder in (output / TRIALS).glob("*/checkpoints"):
        if best is not None and folder.parent != trial_folder(output, best.number):
            shutil.rmtree(folder, ignore_errors=True)


def _importance(optuna: Any, study: Any, found: list[Trial]) -> dict[str, float]:
    """Return the importance of each option, the largest first."""
    if sum(trial.state == "complete" for trial in found) < ENOUGH:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    return shares
