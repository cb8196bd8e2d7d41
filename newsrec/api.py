"""Train, evaluate and export from Python; each does what the command of the same name does.

::

    import newsrec as nr

    data = nr.MindDataModule("data/demo", seed=42)
    model = nr.RecommenderModule()
    run = nr.fit(model, data, output="runs/mine", max_epochs=5)
    print(run.evaluate("dev")["auc"])
    run.export("exports/mine")
    print(nr.Recommender.load("exports/mine").recommend(["N1", "N2"], k=5).news_ids)
"""

import difflib
import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from lightning import Callback, Trainer, seed_everything

from newsrec.data import FIRST_NEWS
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.evaluation.scoring import score_checkpoints
from newsrec.export.export import export
from newsrec.files import require_writable, write_text
from newsrec.report.closing import SUMMARY_FILE, close_run
from newsrec.report.evaluate import evaluate
from newsrec.training.checkpoint.read import (
    check_run_folder,
    hyper_parameters,
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
from newsrec.training.resume import Resumed, resumed
from newsrec.training.run import DEFAULTS, Run

CONFIG_FILE = "config.yaml"


class RunFolder:
    """A trained run in its folder; ``fit`` returns one, and any run can be opened later.

    Args:
        path: The run folder, written by ``fit`` or ``python -m newsrec fit``.

    Raises:
        UserError: If the folder has no checkpoint.
    """

    def __init__(self, path: str | Path, *, _trial: bool = False) -> None:
        self.path = Path(path)
        if not (_trial or self._names()):
            raise UserError(f"{path} has no checkpoint. Train a run there with newsrec.fit.")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def checkpoint(self, name: str = "best") -> Path:
        """Return the file of a checkpoint, ``best`` or ``last``."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    @property
    def summary(self) -> dict[str, Any]:
        """Metrics of the best checkpoint on the split that chose it, steps and speed.

        Empty if no split chose it.
        """
        path = self.path / SUMMARY_FILE
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return found

    @property
    def history(self) -> pd.DataFrame:
        """What the run logged: a row for each logged step, NaN where a value was not logged.

        Empty if the run ended before it logged anything.
        """
        path = self.path / "metrics.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame()

    def load_model(self, checkpoint: str = "best") -> RecommenderModule:
        """Return the trained model, in evaluation mode on the CPU."""
        return RecommenderModule.load_from_checkpoint(self._file(checkpoint))

    def evaluate(
        self,
        split: str = "dev",
        output: str | Path | None = None,
        *,
        root: str | Path | None = None,
        checkpoint: str = "best",
        baselines: bool = True,
        precision: str = "fp32",
        **trainer: Any,
    ) -> dict[str, Any]:
        """Score a split and return MIND's metrics, as ``python -m newsrec evaluate`` does.

        Args:
            split: Split to score.
            output: Folder for all results, among them ``prediction.zip`` and ``report.html``;
                None writes nothing.
            root: Data folder; None is that of the training.
            checkpoint: ``best`` or ``last``.
            baselines: Whether to compare with the baselines.
            precision: fp32, bf16 or auto.
            trainer: Options of the Trainer.

        Returns:
            The content of ``metrics.json``; empty on all processes but the first.

        Raises:
            UserError: If the data or the options cannot be used.
        """
        path, root = self._place(checkpoint, root)
        score = partial(
            score_checkpoints,
            [path],
            root,
            split,
            trainer=trainer,
            precision=precision,
            with_means=baselines,
        )
        found = evaluate(score, root, split, output, ckpt_path=path, baselines=baselines)
        return {} if found is None else found.metrics

    def scores(
        self,
        split: str = "dev",
        *,
        root: str | Path | None = None,
        checkpoint: str = "best",
        **trainer: Any,
    ) -> pd.DataFrame:
        """Return a split's scores, a row for each candidate in the order of the file.

        Args:
            split: Split to score.
            root: Data folder; None is that of the training.
            checkpoint: ``best`` or ``last``.
            trainer: Options of the Trainer.

        Returns:
            Columns ``impression_id``, ``user_id``, ``news_id`` (None where ``news.tsv`` lacks the
            id), ``score`` and, where the split has labels, ``label``. No rows on all processes but
            the first.
        """
        path, root = self._place(checkpoint, root)
        scored = score_checkpoints([path], root, split, trainer=trainer, with_means=False)
        if scored is None:
            return pd.DataFrame()
        part = scored.data.split(split)
        owner = part.candidates.owners()
        ids = np.array([None] * FIRST_NEWS + scored.data.news["news_id"].to_pylist(), dtype=object)
        users = np.array(scored.data.users.to_pylist(), dtype=object)
        columns = {
            "impression_id": np.asarray(part.impression_id)[owner],
            "user_id": users[np.asarray(part.user)[owner]],
            "news_id": ids[part.candidates.values],
            "score": scored.scores,
        }
        if part.labels is not None:
            columns["label"] = np.asarray(part.labels)
        return pd.DataFrame(columns)

    def export(
        self,
        output: str | Path,
        *,
        root: str | Path | None = None,
        checkpoint: str = "best",
        news_encoder: bool = True,
    ) -> Path:
        """Write a folder that runs without PyTorch, for ``Recommender.load``.

        Args:
            output: Folder to write, absent or empty.
            root: Data folder whose news can be recommended; None is that of the training.
            checkpoint: ``best`` or ``last``.
            news_encoder: Whether the export can also encode news that is published later.

        Returns:
            The folder.

        Raises:
            UserError: If a package is missing, or the output or the data cannot be used.
        """
        path, root = self._place(checkpoint, root)
        export(str(path), Path(output), str(root), news_encoder)
        return Path(output)

    def _place(self, checkpoint: str, root: str | Path | None) -> tuple[Path, str | Path]:
        path = self._file(checkpoint)
        return path, root or hyper_parameters(read_checkpoint(path), "data")["root"]

    def _file(self, checkpoint: str) -> Path:
        path = self.checkpoint(checkpoint)
        if path.is_file():
            return path
        if not self._names():
            raise UserError(f"{self.path} has no checkpoint; a trial with fast_dev_run keeps none.")
        why = " because no validation was reached" if checkpoint == "best" else ""
        give = " or ".join(f"checkpoint={name!r}" for name in self._names())
        raise UserError(f"{self.path} has no checkpoint {checkpoint!r}{why}. Give {give}.")

    def _names(self) -> list[str]:
        return [name for name in ("best", "last") if self.checkpoint(name).is_file()]


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
        data: The data; ``plm``, ``max_tokens``, ``max_history`` and ``loss`` are as in the model.
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
    for name, value, kind in (("model", model, RecommenderModule), ("data", data, MindDataModule)):
        if not isinstance(value, kind):
            given = type(value).__name__
            raise TypeError(f"fit() takes a {kind.__name__} as {name}, not {given}.")
    folder = Path(output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}")
    options = _trainer_options(trainer)
    listed = list(callbacks or ()) if isinstance(callbacks, Sequence | None) else [callbacks]
    for callback in listed:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks has {callback!r}, which is no Callback of Lightning.")
    require_writable(folder)
    if resume == "auto":
        resume = "last" if is_resumed(folder, int(options["num_nodes"] or 1)) else None
    begun = Resumed()
    if resume is None:
        if (folder / "checkpoints" / "last.ckpt").is_file():
            raise UserError(
                f"{folder} has a run. Resume it with resume='last', or choose another output."
            )
        check_run_folder(folder)
    else:
        resume = resolve_checkpoint(str(resume), folder)
        checkpoint = read_checkpoint(resume)
        begun = resumed(checkpoint, resume, dict(model.hparams), dict(data.hparams), threads)
        if model.precision == "auto" and begun.precision is not None:
            model.settle_precision(begun.precision, by_auto=True)
    seed_everything(data.seed, workers=True, verbose=False)
    run = Run(
        folder,
        model,
        data,
        save_every=save_every,
        patience=patience,
        steps_done=begun.steps,
        callbacks=listed,
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
        "model": _without(model.hparams, "max_tokens", "max_history"),
        "data": _without(data.hparams, "plm", "loss"),
        "trainer": {n: v for n, v in (DEFAULTS | trainer).items() if _is_plain(v)},
    }
    try:
        with run.folder(built):
            if built.is_global_zero and resume is None and not trial:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
            run.train(built, config, None if resume is None else str(resume))
            close_run(run, built, baselines)
    except Stopped as error:
        done = f"after {built.global_step:,} steps; resume with newsrec.fit(..., resume='last')"
        error.add_note(f"The run in {folder} stopped {done}.")
        raise
    return RunFolder(folder, _trial=trial)


def _trainer_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return all options of the Trainer, after refusing names that it does not have."""
    options = trainer_defaults()
    for name in given:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"fit() and Lightning's Trainer have no argument {name!r}.{hint}")
    return options | DEFAULTS | given


def _without(options: Any, *names: str) -> dict[str, Any]:
    """Return plain options without those that follow another option."""
    kept: dict[str, Any] = plain({n: v for n, v in options.items() if n not in names})
    return kept


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
