"""Writes checkpoints completely or not at all, and saves before a signal stops a run.

``last.ckpt`` is written between two steps, and a run resumed from it ends like one that never
stopped: the loader knows the next batch, samples and dropout depend only on counters, and the file
holds weights, optimizer, schedule, averaged weights and Lightning's own counts.
"""

import logging
import os
import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from newsrec.errors import UserError
from newsrec.model.plm.load import plm_config
from newsrec.training import lightning_internals as internals
from newsrec.training.checkpoint.folders import is_folder, put_checkpoint, read_folder
from newsrec.training.checkpoint.read import CHECKPOINT_FORMAT
from newsrec.training.processes.launch import connection_mistakes

log = logging.getLogger(__name__)

NOT_CHOSEN: dict[str, Any] = {"selected_on": None, "selected_news": "all", "metrics": {}}
"""Values under ``newsrec`` of a checkpoint that no validation chose: none measured its weights."""


def values_beside_weights(module: Any, auto_precision: str | None) -> dict[str, Any]:
    """Return what a checkpoint holds under ``newsrec``, so that loading needs the file alone.

    Args:
        module: The ``RecommenderModule``, attached to a Trainer.
        auto_precision: The run's precision if ``auto`` chose it.
    """
    data, metrics = module.trainer.datamodule, module.trainer.callback_metrics
    return {
        "format": CHECKPOINT_FORMAT,
        "plm_config": plm_config(module.recommender.news_encoder.plm),
        "tokenizer_json": data.tokenizer_json,
        "monitor": "val/auc",
        "selected_on": data.selected_on,
        "selected_news": data.val_news,
        "threads": torch.get_num_threads(),
        "auto_precision": auto_precision,
        "windows": data.windows(),
        "metrics": {k: float(v) for k, v in metrics.items() if k.startswith("val/")},
        "data_fingerprint": {name: data.data.split(name).fingerprint for name in data.windows()},
        **({"category_names": module.category_names} if module.category_names else {}),
        **({} if "val/auc" in metrics else NOT_CHOSEN),
    }


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> BaseException | None:
    """Write a checkpoint whole or not at all; return what kept it from being written, if anything.

    An existing file stays until the new one is complete.
    """
    aside = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        put_checkpoint(aside, path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        return error.__context__ if isinstance(error.__context__, OSError) else error
    return None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it to disk, and renames it.

    An error is kept in ``failed`` and not raised, since the other processes wait for the first one;
    ``LastCheckpoint`` then stops all of them.
    """

    failed: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; an existing file stays until the new one is complete."""
        path = Path(path)
        cause = write_checkpoint(checkpoint, path)
        if cause is not None:
            kept, on = "there is none yet", "start a new run"
            if path.exists():
                kept = "the previous one is whole"
            if path.with_name("last.ckpt").exists():
                on = "resume with --ckpt_path last"
            self.failed = (
                f"{path} could not be written ({cause}); {kept}. Free some space and {on}, or "
                "choose an --output on another disk."
            )

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, also one in a folder of parts."""
        if is_folder(Path(path)):
            return read_folder(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


class Stopped(Exception):
    """Raised after a signal has asked the run to stop and the run has saved its state."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` current, and stops the run between two steps on a signal.

    The file is written before every validation, at the end of every epoch and, unless it is None,
    every ``every`` steps. ``check`` is called before each write; it raises if the state should not
    be saved. The first SIGTERM or Ctrl-C stops the run after a step, the same one on all processes;
    a second ends the process at once.
    """

    def __init__(
        self, path: Path, every: int | None, check: Callable[[Trainer], None] = lambda trainer: None
    ) -> None:
        if every is not None and every < 1:
            raise UserError(f"--save_every is {every}; it is a number of steps, 1 or more.")
        self.path = path
        self.every = every
        self.check = check
        self.saved_step: int | None = None
        self._before_validation = self._saving = False
        self._received = 0
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._asking: tuple[Any, torch.Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle the signals from now on; before training there is nothing to save."""
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not in the main thread
                self._handlers[number] = signal.signal(number, self._receive)
        if trainer.world_size > 1:
            self._group = torch.distributed.group.WORLD
            if torch.distributed.get_backend() != "gloo":
                with connection_mistakes():
                    self._group = torch.distributed.new_group(backend="gloo")
            internals.share_no_signals(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write if due or asked to stop, unless a validation or the epoch's end writes next."""
        asked = self._asked()
        due = self.every is not None and trainer.global_step % self.every == 0
        if (
            not (asked or due)
            or internals.is_accumulating(trainer)
            or internals.is_last_batch(trainer)
        ):
            return
        if internals.validates_next(trainer):
            return
        self._save(trainer)
        if asked:
            raise Stopped(asked)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, so that a run killed in a validation resumes with that validation."""
        if not trainer.sanity_checking:
            self._save(trainer, before_validation=True)
            self._stop_if_asked()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop if asked; the file was written right before the validation."""
        if not trainer.sanity_checking:
            self._stop_if_asked()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and stop if asked."""
        self._save(trainer)
        self._stop_if_asked()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark whether a validation has begun, so that Lightning runs it on resume.

        Other files say that none has; Lightning does not do so after a validation that was run
        again on resume. ``last.ckpt`` also says that no validation chose it.
        """
        if self._saving:
            checkpoint["newsrec"] = NOT_CHOSEN
        if self._before_validation:
            internals.begin_validation(checkpoint)
        else:
            internals.end_validation(checkpoint)

    def _save(self, trainer: Trainer, before_validation: bool = False) -> None:
        self.check(trainer)
        if getattr(trainer, "fast_dev_run", False):  # a trial keeps nothing
            return
        io: Any = trainer.strategy.checkpoint_io
        self._saving, self._before_validation = True, before_validation
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self._saving = self._before_validation = False
        failed = trainer.strategy.broadcast(getattr(io, "failed", None))
        if failed is not None:
            raise UserError(failed)
        self.saved_step = trainer.global_step

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number
        name = signal.Signals(number).name
        log.warning("%s: stopping after this step; again to stop at once", name)

    def _stop_if_asked(self) -> None:
        asked = self._asked()
        if asked:
            raise Stopped(asked)

    def _asked(self) -> int:
        """Return the signal that some process has received, or 0; the same on all processes.

        A signal on one process is seen by all at the next call, so no process has to wait.
        """
        if self._group is None:
            return self._received
        asked = 0
        if self._asking is not None:
            work, flag = self._asking
            work.wait()
            asked = int(flag)
        flag = torch.tensor(self._received)
        op = torch.distributed.ReduceOp.MAX
        self._asking = torch.distributed.all_reduce(flag, op, self._group, async_op=True), flag
        return asked
