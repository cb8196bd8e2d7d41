"""A run: its folder, loggers and callbacks, and the steps around ``Trainer.fit``.

The command ``fit`` and Python code set up a run by the same few calls::

    run = Run(Path("runs/mine"), module, datamodule)
    options = trainer_defaults(**DEFAULTS)
    trainer = Trainer(**(options | run.settle(options).options))
    with run.folder(trainer):
        run.train(trainer)
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.training.callbacks import RunCsv, ScoreCollector
from newsrec.training.checkpoint.read import BEGUN, check_run_folder, plain
from newsrec.training.checkpoint.saving import AtomicCheckpointIO, LastCheckpoint
from newsrec.training.guards import FiniteLoss, out_of_memory
from newsrec.training.hardware.settle import Hardware, Kept, settle_hardware
from newsrec.training.hardware.threads import forget_threads
from newsrec.training.lightning_internals import keep_buffers
from newsrec.training.mistakes import check_trainer, late_mistakes
from newsrec.training.module import RecommenderModule
from newsrec.training.outside_loggers import log_options
from newsrec.training.processes.agreement import early_rank
from newsrec.training.processes.launch import connection_mistakes, started_by_torchrun
from newsrec.training.processes.run_lock import RunLock
from newsrec.training.processes.together import fail_together
from newsrec.training.processes.waiting import wait_in_trainer
from newsrec.training.progress.bar import EpochLine, SpeedBar
from newsrec.training.progress.curves import Curves
from newsrec.training.progress.ending import say_if_finished
from newsrec.training.progress.parts import StepParts
from newsrec.training.progress.throughput import Throughput

log = logging.getLogger(__name__)

DEFAULTS = {"max_epochs": 5, "gradient_clip_val": 1.0, "use_distributed_sampler": False}
"""Trainer options that differ from Lightning's defaults, which would train for 1,000 epochs."""


class Settled(NamedTuple):
    """Settings that are fixed before the Trainer is built."""

    options: dict[str, Any]
    """Trainer options that the run sets, including callbacks."""
    hardware: Hardware


class Run:
    """A run in its folder.

    ``last.ckpt`` is written every ``save_every`` steps within an epoch, or, if None, only before
    validations and at the end of an epoch. The run stops after ``patience`` validations without a
    better ``val/auc``. A resumed run has done ``steps_done`` steps. Further callbacks are called
    before those that draw and save.
    """

    def __init__(
        self,
        output: Path,
        model: RecommenderModule,
        datamodule: MindDataModule,
        *,
        save_every: int | None = 1000,
        patience: int | None = None,
        steps_done: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.output = output
        self.model = model
        self.datamodule = datamodule
        csv = RunCsv(output)
        # Hide values that a killed run logged after its checkpoint: they are logged again.
        board: Any = {"name": "tensorboard", "version": "", "purge_step": steps_done}
        self.loggers: list[Any] = [csv, TensorBoardLogger(str(output), **board)]
        self.last = output / "checkpoints" / "last.ckpt"
        monitor = None if datamodule.selected_on is None else "val/auc"
        place: dict[str, Any] = {"dirpath": output / "checkpoints", "filename": "best"}
        self.best = ModelCheckpoint(
            **place, monitor=monitor, mode="max", enable_version_counter=False
        )
        self.throughput, self.parts = Throughput(), StepParts()
        guard = FiniteLoss(self.last)
        self.callbacks: list[Callback] = [
            *(ScoreCollector(), self.throughput, self.parts),
            *callbacks,
            guard,
            Curves(csv, output / "curves.png"),
            LearningRateMonitor("step"),
            EpochLine(),
            *self._early_stopping(monitor, patience),
            self.best,
            LastCheckpoint(self.last, save_every, guard.check_weights),
        ]

    def _early_stopping(self, monitor: str | None, patience: int | None) -> list[EarlyStopping]:
        if patience is None:
            return []
        if patience < 1 or monitor is None:
            raise UserError(
                f"--patience is {patience} and data.val is {self.datamodule.val}: patience is a "
                "number of validations, at least 1, on the split that data.val names."
            )
        return [EarlyStopping(monitor, mode="max", patience=patience)]

    def settle(
        self, trainer: Mapping[str, Any], threads: int | None = None, kept: Kept | None = None
    ) -> Settled:
        """Set threads and precision, and return the options to build the Trainer with.

        ``trainer`` are all requested options of the Trainer, ``kept`` the settings of the run that
        is resumed. An option that cannot work is refused.
        """
        check_trainer(trainer)
        logger = trainer["logger"]
        loggers = [] if logger in (None, True, False) else _listed(logger)
        bar = [] if trainer["enable_progress_bar"] is False else [SpeedBar()]
        options = {
            "logger": [*self.loggers, *loggers],
            "default_root_dir": str(self.output),
            **started_by_torchrun(trainer),
            "plugins": [AtomicCheckpointIO(), *_listed(trainer["plugins"] or [])],
            "callbacks": [*self.callbacks, *bar],
            "use_distributed_sampler": False,
        }
        found = settle_hardware(trainer, self.model, self.datamodule, threads, kept or Kept())
        self.model.settle_precision(found.precision, found.by_auto)
        return Settled(options | {"precision": found.trainer_precision}, found)

    @contextmanager
    def folder(self, trainer: Trainer) -> Iterator[None]:
        """Reserve the run folder for this run; refuse if another run is using it.

        If the run fails before its first step, its new folder is removed; a folder that existed
        before is kept.
        """
        lock = RunLock(self.output)
        first = trainer.is_global_zero
        if first:
            lock.take()
        try:
            yield
        except BaseException:
            begun = trainer.global_step or (self.output / "checkpoints").exists()
            if first and not begun:
                lock.discard(BEGUN)
            raise
        finally:
            lock.release()
            forget_threads()

    def train(
        self,
        trainer: Trainer,
        options: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        **fit_options: Any,
    ) -> None:
        """Train a new run, or resume from ``ckpt_path``.

        The loggers get ``options``, those of the whole run; ``Trainer.fit`` gets ``fit_options``.
        Raises ``Stopped`` if a signal stopped the run, after it has saved, and UserError if the run
        cannot work with the data or on the machine.
        """
        data = self.datamodule
        if early_rank() is not None and not trainer.is_global_zero:
            # Wait for the data here: the first process joins the group only after it has the data.
            with suppress(Exception):  # Trainer.fit raises it again
                data.prepare_data()
        if trainer.is_global_zero:  # find mistakes in the data before anything slow
            if ckpt_path is None:
                check_run_folder(self.output)  # another run may have ended here meanwhile
            data.prepare_data()
            data.setup("fit")
            log.info("%s", data.describe())
            log_options(trainer.loggers, plain(dict(options or {})))
            say_if_finished(trainer, ckpt_path)
        keep_buffers(trainer)
        wait_in_trainer(trainer)
        remedies = out_of_memory(self.model, data, trainer)
        with fail_together(trainer), remedies, late_mistakes(), connection_mistakes():
            trainer.fit(self.model, datamodule=data, ckpt_path=ckpt_path, **fit_options)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
