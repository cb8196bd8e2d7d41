"""Give a run's report to Weights & Biases and MLflow, if the run uses them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from newsrec.metrics import METRICS

log = logging.getLogger(__name__)


def log_report(loggers: Sequence[Any], files: Sequence[Path], summary: Path) -> None:
    """Add the files and the metrics of the best checkpoint to the run of each tracker.

    The loggers upload the checkpoint themselves if their option ``log_model`` is set. An error is
    only logged, since the run is already complete.

    Args:
        loggers: All loggers of the run.
        files: Files to add.
        summary: The run's ``summary.json``; without it, no metrics are added.
    """
    found = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    metrics = {f"best/{name}": found[name] for name in METRICS if name in found}
    for logger in loggers:
        try:
            if isinstance(logger, WandbLogger):
                _to_wandb(logger, files, metrics)
            elif isinstance(logger, MLFlowLogger):
                for file in files:
                    logger.experiment.log_artifact(str(logger.run_id), str(file), "best")
                logger.log_metrics(metrics)
        except Exception as error:
            said = " ".join(str(error).split())
            log.warning("%s did not take the report: %s", type(logger).__name__, said)


def _to_wandb(logger: WandbLogger, files: Sequence[Path], metrics: dict[str, float]) -> None:
    import wandb

    run: Any = logger.experiment
    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    for file in files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)
    run.summary.update(metrics)
