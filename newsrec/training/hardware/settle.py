"""Settles the number of threads and the precision before a Trainer exists."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoConfig

from newsrec.data.readers.formats import reader_of
from newsrec.errors import UserError
from newsrec.plm_source import read_plm_config
from newsrec.shipped import data_folder
from newsrec.training.checkpoint.read import hyper_parameters
from newsrec.training.hardware.heap import forget_shapes, keep_freed_memory
from newsrec.training.hardware.precision import (
    TRAINERS,
    choose_auto,
    trainer_device,
    trainer_precision,
    warn_of_slow_bf16,
)
from newsrec.training.hardware.probe import LinearMap, linear_maps
from newsrec.training.hardware.threads import (
    Maps,
    Threads,
    choose_threads,
    processes_here,
    set_threads,
)
from newsrec.training.processes.agreement import decided_by_first

if TYPE_CHECKING:
    from newsrec.data.datamodule import MindDataModule
    from newsrec.training.module import RecommenderModule

log = logging.getLogger(__name__)


class Hardware(NamedTuple):
    """Threads and precision of a run."""

    threads: int
    precision: str
    """The model's precision, fp32 or bf16; not settled if ``trainer.precision`` is set."""
    by_auto: bool
    """Whether ``auto`` chose the precision."""
    trainer_precision: Any
    """The Trainer's name of the precision."""


class Kept(NamedTuple):
    """Settings of a run that is resumed; the defaults are for a new run."""

    threads: int | None = None
    by_auto: bool = False
    """Whether ``auto`` chose the model's precision."""


def settle_hardware(
    trainer: Mapping[str, Any],
    module: "RecommenderModule",
    datamodule: "MindDataModule",
    threads: int | None = None,
    kept: Kept = Kept(),  # noqa: B008, it is immutable
) -> Hardware:
    """Set the number of threads and choose the precision; log both.

    The caller writes the choice into ``config.yaml`` and checkpoints, so that a resumed run
    computes as before, on any machine. The model is not built yet and the data is not opened.
    """
    root = data_folder(datamodule.root)
    reader_of(root).find_splits(root)  # raises for a wrong folder before anything is measured

    @cache
    def maps() -> Sequence[LinearMap]:
        plm = read_plm_config(module.plm, module.plm_layers)
        kept_states = datamodule.frozen_states != "none"
        return linear_maps(module, plm, datamodule.batch_size, kept_states)

    device = trainer_device(trainer)
    chosen = _settle_threads(trainer, device, maps, threads, kept.threads)
    by_auto = kept.by_auto or module.precision == "auto"
    if trainer["precision"] is not None:
        used = trainer_precision(trainer, module.precision)
        return Hardware(chosen.number, module.precision, kept.by_auto, used)

    def decide() -> str:
        if module.precision != "auto":
            if kept.by_auto:
                log.info("precision: %s, as auto chose when this run began", module.precision)
            elif module.precision == "bf16":
                warn_of_slow_bf16(device, maps)
            return module.precision
        return _by_measuring(device, maps, "model.precision")

    precision = decided_by_first("precision", decide, int(trainer["num_nodes"] or 1))
    return Hardware(chosen.number, precision, by_auto, trainer_precision(trainer, precision))


def settle_scoring(
    trainer: Mapping[str, Any], precision: str, checkpoint: dict[str, Any], batch_size: int
) -> str:
    """Set the threads for ``evaluate``, and return its precision, fp32 or bf16; log both."""
    if precision not in ("auto", *TRAINERS):
        raise UserError(f"--precision is {precision!r}. Choose one of fp32, bf16, auto.")

    @cache
    def maps() -> Sequence[LinearMap]:
        model = SimpleNamespace(**hyper_parameters(checkpoint, "model"))
        plm = AutoConfig.for_model(**checkpoint["newsrec"]["plm_config"])
        return linear_maps(model, plm, batch_size, kept_states=False, training=False)

    device = trainer_device(trainer)
    _settle_threads(trainer, device, maps)
    if precision == "bf16":
        warn_of_slow_bf16(device, maps)
    if precision != "auto":
        return precision
    decide = partial(_by_measuring, device, maps, "--precision")
    return decided_by_first("precision", decide, int(trainer["num_nodes"] or 1))


def _settle_threads(
    trainer: Mapping[str, Any], device: torch.device | None, maps: Maps, *given: int | None
) -> Threads:
    processes = processes_here(trainer)
    on_cpu = device is not None and device.type == "cpu"
    if on_cpu:
        forget_shapes()
        keep_freed_memory()
    chosen = choose_threads(processes, maps if on_cpu else None, *given)
    set_threads(chosen, processes)
    return chosen


def _by_measuring(device: torch.device | None, maps: Maps, option: str) -> str:
    choice = choose_auto(device, maps)
    log.info("precision: %s (%s auto): %s", choice.precision, option, choice.why)
    return choice.precision


def trainer_defaults(**options: Any) -> dict[str, Any]:
    """Return all options of a Trainer: the given ones, and Lightning's defaults for the rest."""
    from lightning import Trainer

    parameters = inspect.signature(Trainer).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters} | options
