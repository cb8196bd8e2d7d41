"""Train a model in a run folder, from Python."""

import difflib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, Trainer, seed_everything

from newsrec.api.arguments import check_arguments, listed
from newsrec.api.run_folder import RunFolder
from newsrec.console import counted
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.files import require_writable, write_text
from newsrec.report.closing import close_run
from newsrec.spoken import in_python
from newsrec.training.checkpoint.read import (
    check_run_folder,
    plain,
    read_checkpoint,
    resolve_checkpoint,
)
from newsrec.training.checkpoint.saving import Stopped
from newsrec.training.hardware.settle import trainer_defaults
from newsrec.training.mistakes import trainer_mistakes
from newsrec.training.module import RecommenderModule
from newsrec.training.processes.launch import refuse_unconnected
from newsrec.training.processes.share_folder import is_resumed
from newsrec.training.resume import LINKS, Resumed, resumed
from newsrec.training.run import DEFAULTS, Run

CONFIG_FILE = "config.yaml"


@in_python
def fit(
    model: RecommenderModule,
    data: MindDataModule,
    output: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    save_every: int | None = 1000,
    patience: int | None = None,
    baselines: bool = True,
    threads: int | None = None,
    callbacks: Callback | Sequence[Callback] | None = (),
    **trainer: Any,
) -> RunFolder:
    """Train a model in a run folder, as ``python -m newsrec fit`` does.

    The command can resume the run, and ``fit`` can resume one that the command began. The seed of
    the run is the data module's; with the same options and ``seed=42``, the command's default,
    both train the same weights.

    Args:
        model: A new model, not trained yet.
        data: The data; ``plm``, ``max_tokens``, ``abstract_tokens``, ``max_history`` and ``loss``
            are as in the model.
        output: The run folder; None names one after the time, in ``runs/``.
        resume: ``last`` or ``best`` checkpoint of ``output``, or a path; ``auto`` is ``last`` where
            there is one. None starts a new run.
        save_every: Steps between two writes of ``last.ckpt`` within an epoch; None writes it only
            before validations and at the end of an epoch.
        patience: The run stops after this many validations without a better ``val/auc``.
        baselines: Whether to compare the best checkpoint with the baselines at the end.
        threads: Threads of a process; None chooses. They stay set in this process.
        callbacks: Further callbacks, one or several.
        trainer: Options of Lightning's ``Trainer``: ``max_epochs``, ``max_steps``, ``devices``, ...

    Returns:
        The run; it has no checkpoint after a trial with ``fast_dev_run``.

    Raises:
        UserError: If the run cannot work with the options, the data or the machine.
        TypeError: If the Trainer has no such option, or an argument has another type.
        Stopped: If Ctrl-C or SIGTERM stopped the run, after it has saved.
    """
    own = {"output": output, "resume": resume, "save_every": save_every, "patience": patience}
    own |= {"threads": threads, "baselines": baselines}
    check_arguments(model, data, own | trainer)
    folder = Path(output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}")
    options = _trainer_options(trainer)
    further = listed(callbacks)
    require_writable(folder)
    if resume == "auto":
        resume = "last" if is_resumed(folder, int(options["num_nodes"] or 1)) else None
    if resume is not None:
        resume = str(resolve_checkpoint(str(resume), folder))
    begun = _begin(model, data, folder, resume, threads)
    seed_everything(data.seed, workers=True, verbose=False)
    run = Run(
        folder,
        model,
        data,
        save_every=save_every,
        patience=patience,
        steps_done=begun.steps,
        callbacks=further,
    )
    settled = run.settle(options, threads, begun.hardware)
    with trainer_mistakes():
        built = Trainer(**(options | settled.options))
    refuse_unconnected(built)
    trial = bool(options["fast_dev_run"])
    config = {
        "seed_everything": data.seed,
        "output": str(folder),
        "save_every": save_every,
        "patience": patience,
        "baselines": baselines,
        "threads": settled.hardware.threads,
        "model": _own_options("model", model.hparams),
        "data": _own_options("data", data.hparams),
        "trainer": {n: v for n, v in (DEFAULTS | trainer).items() if _is_plain(v)},
    }
    try:
        with run.folder(built):
            if built.is_global_zero and resume is None and not trial:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
            run.train(built, config, resume)
            close_run(run, built, baselines)
    except Stopped as error:
        done = f"after {counted(built.global_step, 'step')}"
        again = "resume with newsrec.fit(..., resume='last')"
        error.add_note(f"The run in {folder} stopped {done}; {again}.")
        raise
    return RunFolder(folder, _trial=trial)


def _begin(
    model: RecommenderModule,
    data: MindDataModule,
    folder: Path,
    checkpoint: str | None,
    threads: int | None,
) -> Resumed:
    """Return the state of the run to resume; for a new run, refuse a folder that is in use."""
    if checkpoint is not None:
        options = dict(model.hparams), dict(data.hparams)
        begun = resumed(read_checkpoint(checkpoint, in_parts=True), checkpoint, *options, threads)
        if model.precision == "auto" and begun.precision is not None:
            model.settle_precision(begun.precision, by_auto=True)
        return begun
    if (folder / "checkpoints" / "last.ckpt").is_file():
        raise UserError(
            f"{folder} has a run. Resume it with resume='last', or choose another output."
        )
    check_run_folder(folder)
    return Resumed()


def _trainer_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return all options of the Trainer, after refusing names that it does not have."""
    options = trainer_defaults()
    for name in given:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"fit() and Lightning's Trainer have no argument {name!r}.{hint}")
    return options | DEFAULTS | given


def _own_options(part: str, options: Any) -> dict[str, Any]:
    """Return plain options of ``model`` or ``data``, without those that follow the other's."""
    kept = {name: value for name, value in options.items() if f"{part}.{name}" not in LINKS}
    found: dict[str, Any] = plain(kept)
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
