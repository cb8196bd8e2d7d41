"""Callbacks and the CSV logger: frozen states, scores of a split, ``metrics.csv``."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from newsrec.data.batch import EvalBatch
from newsrec.data.dataset import Split
from newsrec.files import write_text
from newsrec.training.catalogue import frozen_states
from newsrec.training.processes.together import fail_together
from newsrec.training.processes.waiting import team_beside, wait_for_all

log = logging.getLogger(__name__)

DAMAGED = "metrics.damaged.csv"
"""New name of a ``metrics.csv`` that cannot be read completely."""


class FrozenStates(Callback):
    """Loads the states of the PLM's frozen layers, so that training need not compute them.

    The processes divide the computing of states that are not stored beside the data yet; then all
    read them. Machines without a shared data folder each compute all states.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find or compute the states, unless all layers are tuned or ``frozen_states`` is none.

        Raises UserError on every process if the disk has too little space. If one process fails in
        another way, all others raise UserError.
        """
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if module.tune_layers == -1 or data.frozen_states == "none" or data.states is not None:
            return
        if module.recommender.news_encoder.cut.in_step:
            log.info("frozen states are not kept, since the PLM is sharded: it runs in every step")
            return

        encoder = module.recommender.news_encoder.eval()
        try:
            with fail_together(trainer):
                team = team_beside(trainer, data.root)
                ways = data.catalogue, data.root, data.frozen_states, data.news_ends
                data.use_states(frozen_states(encoder.cut, *ways, team))
                wait_for_all()  # another machine may take longer
        finally:
            encoder.train()


class ScoreCollector(Callback):
    """Collects the scores of ``trainer.predict`` and sorts them into the order of the file."""

    def __init__(self) -> None:
        self.parts: list[tuple[NDArray, NDArray]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier scores."""
        self.parts = []

    def on_predict_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: EvalBatch, *_: Any
    ) -> None:
        """Keep a batch's rows and scores."""
        self.parts.append((batch.row.cpu().numpy(), outputs.cpu().numpy()))

    def scores(self, trainer: Trainer, split: Split) -> NDArray[np.float32] | None:
        """Gather the scores of all processes on the first one; None on the others.

        They are in the order of the split's file ``[candidates]``.
        """
        parts, self.parts = self.parts, []
        if trainer.world_size > 1:
            first = trainer.is_global_zero
            gathered: list[Any] | None = [None] * trainer.world_size if first else None
            torch.distributed.gather_object(parts, gathered)
            if gathered is None:
                return None
            parts = [part for own in gathered for part in own]
        assert sum(len(rows) for rows, _ in parts) == len(split.history)
        scores = np.empty(len(split.candidates.values), dtype=np.float32)
        for rows, own in parts:
            scores[split.candidates.places(rows).values] = own
        return scores


class RunCsv(CSVLogger):
    """Writes ``metrics.csv`` in the run folder; a resumed run appends to the same file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), name="", version="")

    @property
    def experiment(self) -> "_RunCsvWriter":
        """The writer."""
        if not isinstance(self._experiment, _RunCsvWriter):
            self._experiment = _RunCsvWriter(self.save_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: the run's ``config.yaml`` has the options."""


class _RunCsvWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Keep existing rows, which Lightning would delete."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            self.metrics_keys = _read_log(path)[0]

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Rewrite the file completely or not at all; Lightning would empty it first."""
        path = Path(self.metrics_file_path)
        _write_log(path, fieldnames, _read_log(path)[1])

    def forget_after(self, step: int, validation: bool) -> None:
        """Drop rows logged after the checkpoint by a killed run; the resumed run logs them again.

        The checkpoint was written after ``step`` steps. ``validation`` is True if the validation
        after these steps is run again.
        """
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        self.metrics_keys, rows, damaged = _read_log(path)
        if damaged:
            kept = path.with_name(DAMAGED)
            path.replace(kept)
            log.warning(
                "%s: lines that cannot be read, left out: %s; the original file is now %s",
                *(path, f"{damaged:,}", kept.name),
            )
        rows = [
            row
            for row in rows
            if int(row["step"]) < step - (validation and bool(row.get("val/auc")))
        ]
        if self.metrics_keys:
            _write_log(path, self.metrics_keys, rows)


def _read_log(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    """Return column names, rows and the number of unreadable lines of a ``metrics.csv``.

    A killed run can leave half a line.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [_cells(line) for line in text.splitlines()]
    if lines and not text.endswith("\n"):
        lines[-1] = []
    names = lines[0] if lines else []
    if "step" not in names or len(set(names)) < len(names):
        return [], [], len(lines)
    rows = [dict(zip(names, cells, strict=False)) for cells in lines[1:] if _is_row(names, cells)]
    return names, rows, len(lines) - 1 - len(rows)


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _is_row(names: list[str], cells: list[str]) -> bool:
    try:
        int(cells[names.index("step")])
        for cell in filter(None, cells):
            float(cell)
    except (ValueError, IndexError):
        return False
    return len(cells) == len(names)


def _write_log(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
