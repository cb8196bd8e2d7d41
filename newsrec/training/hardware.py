"""What is settled before a Trainer exists: threads, and the precision that ``auto`` comes to."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from newsrec.data.source import find_splits
from newsrec.plm import read_plm_config
from newsrec.training.agreement import decided_by_first
from newsrec.training.checkpoint import hyper_parameters
from newsrec.training.precision import (
    choose_auto,
    trainer_device,
    trainer_precision,
    warn_of_slow_bf16,
)
from newsrec.training.probe import LinearMap, linear_maps
from newsrec.training.threads import choose_threads, processes_here, set_threads

if TYPE_CHECKING:
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)


def settle_hardware(
    config: Any,
    trainer: Any,
    module: "RecommenderModule",
    datamodule: "MindDataModule",
    typed: bool,
) -> Any:
    """Set the number of threads, and return the Trainer's precision; say both.

    What was chosen stands in the options from then on, so in ``config.yaml`` and in checkpoints:
    a run that goes on, on whatever machine, is computed as it began.

    Args:
        config: The options of ``fit``; ``threads`` and ``model.precision`` are filled in.
        trainer: The Trainer's options.
        module: The model, not built yet.
        datamodule: The data, not opened yet.
        typed: Whether the command line itself sets ``threads``.
    """
    find_splits(Path(datamodule.root))  # a wrong folder shows before anything is measured

    @cache
    def maps() -> Sequence[LinearMap]:
        plm = read_plm_config(module.plm, module.plm_layers)
        kept = datamodule.frozen_states != "none"
        return linear_maps(module, plm, datamodule.batch_size, kept)

    processes = processes_here(trainer)
    device = trainer_device(trainer)
    on_cpu = device is not None and device.type == "cpu"
    asked, kept = (config.threads, None) if typed else (None, config.threads)
    threads = choose_threads(processes, maps if on_cpu else None, asked, kept)
    set_threads(threads, processes)
    config.threads = threads.number
    if trainer["precision"] is not None:
        return trainer_precision(trainer, module.precision)

    def decide() -> str:
        if module.precision != "auto":
            if module.auto_chose:
                log.info("precision: %s, as auto chose when this run began", module.precision)
            elif module.precision == "bf16":
                warn_of_slow_bf16(device, maps)
            return module.precision
        choice = choose_auto(device, maps)
        module.auto_chose = True
        log.info("precision: %s (model.precision auto): %s", choice.precision, choice.why)
        return choice.precision

    chosen = decided_by_first("precision", decide, int(trainer["num_nodes"] or 1))
    config.model.precision = module.precision = module.hparams["precision"] = chosen
    return trainer_precision(trainer, chosen)


def settle_scoring(
    trainer: Any, precision: str, checkpoint: dict[str, Any], batch_size: int
) -> str:
    """Set the number of threads of ``evaluate``, and return its precision; say what was chosen.

    Args:
        trainer: The Trainer's options.
        precision: fp32, bf16 or auto.
        checkpoint: The model that is scored.
        batch_size: Impressions of a step.

    Returns:
        fp32 or bf16, the same on all processes.
    """

    @cache
    def maps() -> Sequence[LinearMap]:
        model = SimpleNamespace(**hyper_parameters(checkpoint, "model"))
        plm = AutoConfig.for_model(**checkpoint["newsrec"]["plm_config"])
        return linear_maps(model, plm, batch_size, kept_states=False, training=False)

    processes, device = processes_here(trainer), trainer_device(trainer)
    on_cpu = device is not None and device.type == "cpu"
    set_threads(choose_threads(processes, maps if on_cpu else None), processes)
    if precision == "bf16":
        warn_of_slow_bf16(device, maps)
    if precision != "auto":
        return precision

    def decide() -> str:
        choice = choose_auto(device, maps)
        log.info("precision: %s (--precision auto): %s", choice.precision, choice.why)
        return choice.precision

    return decided_by_first("precision", decide, int(trainer["num_nodes"] or 1))


def keep_hardware(config: Any, checkpoint: dict[str, Any]) -> bool:
    """Give a run that goes on the threads and the precision of auto that it began with.

    With other threads sums are taken in another order, and the last digits may differ.

    Args:
        config: The options of ``fit``.
        checkpoint: What the run goes on from.

    Returns:
        Whether ``auto`` chose that precision, and it is still the run's.
    """
    if config.threads is None:
        config.threads = checkpoint["newsrec"].get("threads")
    began = checkpoint["newsrec"].get("auto_precision")
    if began is None:  # it was asked for, or the run is from before auto measured
        return False
    if config.model.precision == "auto":
        config.model.precision = began
    return config.model.precision == began
